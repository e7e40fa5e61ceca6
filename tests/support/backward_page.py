"""Measures a step in the backward pass: ``python tests/support/backward_page.py [--measure]``.

With ``--measure`` it trains two copies of a model in turns, one with `step_in_backward`, and writes
the result file. In any case it writes that file's figures into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import bench_package  # noqa: F401
import torch
import written_pages
from torch import nn

import fused_optim
from bench import ROOT, pages, timing
from bench.memory import cpu_transient
from bench.system import describe
from bench.tables import figure

PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "bench" / "results" / "cpu-2core" / "in_backward.json"
WIDTH, LAYERS, BATCH, ROUNDS = 1024, 24, 64, 41
BUCKETS = (0, 8 << 20, 32 << 20)

Make = Callable[[list], torch.optim.Optimizer]
MAKES: dict[str, Make] = {
    "AdamW": fused_optim.AdamW,
    "Adafactor": functools.partial(fused_optim.Adafactor, lr=1e-3, relative_step=False),
}


def training(make: Make, dtype: torch.dtype, bucket_bytes: int | None) -> Callable[[], None]:
    """Return one pass of training: forward, backward and the update."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))).to(dtype)
    optimizer = make([*model.parameters()])
    if bucket_bytes is not None:
        fused_optim.step_in_backward(model, optimizer, bucket_bytes=bucket_bytes)
    x = torch.randn(BATCH, WIDTH, dtype=dtype)

    def step() -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bytes_of(dtype: str) -> tuple[int, int]:
    """Return the bytes of all gradients of the model, and of what the forward pass keeps."""
    size = getattr(torch, dtype).itemsize
    return LAYERS * WIDTH * WIDTH * size, LAYERS * BATCH * WIDTH * size


def measured(rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure every optimizer and dtype: afterwards, and within for some sizes of buckets."""
    rows = []
    for name, make in MAKES.items():
        for dtype in (torch.float32, torch.bfloat16):
            steps = [training(make, dtype, bucket) for bucket in (None, *BUCKETS)]
            times = timing.in_turns(steps, timing.CpuTimer(), rounds)
            peaks = [cpu_transient(step) for step in steps]
            plain = times[0].ms
            for bucket, each, peak in zip(BUCKETS, times[1:], peaks[1:], strict=True):
                ratios = [mine / theirs for mine, theirs in zip(each.ms, plain, strict=True)]
                rows.append(
                    {
                        "optimizer": name,
                        "dtype": str(dtype).removeprefix("torch."),
                        "bucket_bytes": bucket,
                        "time_ratio": timing.quartiles(ratios),
                        "peak_bytes": peak,
                        "plain_peak_bytes": peaks[0],
                    }
                )
    shape = {"width": WIDTH, "layers": LAYERS, "batch": BATCH, "rounds": rounds}
    machine = dataclasses.asdict(describe(torch.device("cpu"), {}))
    return {"machine": machine, "model": shape, "rows": rows}


def table(found: dict[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        low, middle, high = (figure(value, 3) for value in row["time_ratio"])
        peaks = (figure(row[key] / 2**20, 3) for key in ("plain_peak_bytes", "peak_bytes"))
        bucket = f"{row['bucket_bytes'] >> 20} MiB" if row["bucket_bytes"] else "a parameter"
        names = (f"`{row['optimizer']}`", row["dtype"], bucket)
        rows.append((*names, *peaks, f"{middle} [{low}, {high}]"))
    head = ("", "dtype", "bucket", "peak before, MiB", "peak, MiB", "time of a pass")
    return pages.markdown(head, rows)


TABLES = {"in_backward": lambda: table(json.loads(RESULTS.read_text()))}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure anew: takes a minute")
    if parser.parse_args(arguments).measure:
        RESULTS.write_text(json.dumps(measured(), indent=1) + "\n")
    written_pages.rewrite(PAGE, TABLES)


if __name__ == "__main__":
    main()
