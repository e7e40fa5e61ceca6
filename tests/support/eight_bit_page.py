"""What docs/eight_bit.md shows: ``python tests/support/eight_bit_page.py [--measure] [--draw]``.

With ``--measure`` it measures codes and bitsandbytes anew, which takes minutes. The table of
training and the picture, which ``--draw`` draws again, come from the results of
``examples/demo/precision.py --recipes 8-bit``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable
from statistics import fmean
from typing import Any

import bench_package  # noqa: F401
import torch
import written_pages
from moment_codes import BLOCK, CODES, error
from torch import nn

from bench import ROOT, pages, timing
from bench.system import describe
from bench.tables import figure
from fused_optim import torch_compat

PAGE = ROOT / "docs" / "eight_bit.md"
RESULTS = ROOT / "bench" / "results" / "cpu-2core"
CODE_RESULTS = RESULTS / "eight_bit_codes.json"
CURVES = RESULTS / "eight_bit_curves.json"
IMAGE = ROOT / "docs" / "images" / "eight_bit_curves.png"
DEMO = str(ROOT / "examples" / "demo")
STEPS, NUMEL = 400, 64 * BLOCK
Gradients = list[torch.Tensor]


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (NUMEL,))


def _uneven(octaves: float) -> Gradients:
    sizes = torch.exp2(torch.rand(NUMEL) * octaves)
    return [_normal() * sizes for _ in range(STEPS)]


def _sparse_rows() -> Gradients:
    return [
        (_normal(64, BLOCK) * (torch.rand(64, 1) < 0.02)).reshape(-1).clone() for _ in range(STEPS)
    ]


def recorded() -> Gradients:
    """Return gradients of the demo's GPT while it trains: some of each of its matrices."""
    sys.path.insert(0, DEMO)
    import precision as training
    from corpus import load_corpus

    settings = dataclasses.replace(training.Settings(), steps=STEPS)
    trained = training.Trained(training.RECIPES[0], 0, settings, load_corpus())
    found = []
    for step in range(STEPS):
        batch = trained.corpus.batch(0, step, settings.batch, settings.context)
        trained.loss(*batch).backward()
        parts = [p.grad.reshape(-1)[: 8 * BLOCK] for p in trained.model.parameters()]
        found.append(torch.cat([part for part in parts if len(part) == 8 * BLOCK]))
        trained.optimizer.step()
        trained.scheduler.step()
        trained.optimizer.zero_grad()
    return found


DISTRIBUTIONS: dict[str, Callable[[], Gradients]] = {
    "the demo's GPT": recorded,
    "normal": lambda: _uneven(0.0),
    "over 4 octaves": lambda: _uneven(4.0),
    "over 16": lambda: _uneven(16.0),
    "of 1e-15": lambda: [1e-15 * _normal() for _ in range(STEPS)],
    "heavy tails": lambda: [_normal() * torch.exp(1.5 * _normal()) for _ in range(STEPS)],
    "2 % of rows": _sparse_rows,
    "2 % of elements": lambda: [_normal() * (torch.rand(NUMEL) < 0.02) for _ in range(STEPS)],
}
"""What gradients are drawn from, by the name of a column."""


def measured_codes() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {name: {} for name in CODES}
    for column, make in DISTRIBUTIONS.items():
        torch.manual_seed(0)
        grads = make()
        for name, code in CODES.items():
            found[name][column] = error(grads, code)
    return found


def driven(make: Callable[[list], torch.optim.Optimizer], grads: Gradients) -> Gradients:
    """Return an optimizer's own updates at a rate of 1 of a parameter that is put back to zero."""
    param = nn.Parameter(torch.zeros(64, len(grads[0]) // 64))
    optimizer, found = make([param]), []
    for grad in grads:
        param.grad = grad.view(param.shape).clone()
        optimizer.step()
        found.append(-param.detach().reshape(-1).clone())
        with torch.no_grad():
            param.zero_()
    return found


def measured_peer() -> dict[str, Any]:
    """Drive bitsandbytes' optimizer and ours beside torch's; time both on 2^22 elements."""
    import bitsandbytes

    options = {"lr": 1.0, "eps": 1e-8, "weight_decay": 0.0}
    makes = {
        "ours": lambda params: torch_compat.AdamW(params, state_dtype="int8", **options),
        "bitsandbytes": lambda params: bitsandbytes.optim.AdamW8bit(params, **options),
    }
    errors: dict[str, dict[str, float]] = {name: {} for name in makes}
    for column in ("normal", "over 4 octaves", "2 % of rows"):
        torch.manual_seed(0)
        grads = DISTRIBUTIONS[column]()
        exact = driven(lambda params: torch.optim.AdamW(params, **options), grads)[STEPS // 2 :]
        for name, make in makes.items():
            mine = driven(make, grads)[STEPS // 2 :]
            off = sum(
                (a - b).double().square().sum().item() for a, b in zip(mine, exact, strict=True)
            )
            errors[name][column] = math.sqrt(
                off / sum(e.double().square().sum().item() for e in exact)
            )
    steps = []
    for make in makes.values():
        param = nn.Parameter(torch.randn(1 << 11, 1 << 11))
        param.grad = torch.randn_like(param)
        steps.append(make([param]).step)
    times = timing.in_turns(steps, timing.CpuTimer(), 11)
    ratios = [b / a for a, b in zip(times[0].ms, times[1].ms, strict=True)]
    return {
        "version": bitsandbytes.__version__,
        "errors": errors,
        "ms": {name: timing.quartiles(t.ms)[1] for name, t in zip(makes, times, strict=True)},
        "time_ratio": timing.quartiles(ratios),
    }


def measure() -> None:
    machine = dataclasses.asdict(describe(torch.device("cpu"), {"bitsandbytes": "bitsandbytes"}))
    found = {"machine": machine, "steps": STEPS, "codes": measured_codes(), "peer": measured_peer()}
    CODE_RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def _percent(value: float) -> str:
    return f"{100 * value:.2g}" if value < 1.0 else "**lost**"


def codes_table() -> str:
    found = json.loads(CODE_RESULTS.read_text())["codes"]
    rows = [(name, *map(_percent, by_column.values())) for name, by_column in found.items()]
    return pages.markdown(("code", *DISTRIBUTIONS), rows)


def peer_table() -> str:
    found = json.loads(CODE_RESULTS.read_text())["peer"]
    rows = [
        (name, *map(_percent, errors.values()), f"{figure(found['ms'][name], 3)} ms")
        for name, errors in found["errors"].items()
    ]
    return pages.markdown(("", *found["errors"]["ours"], "4M elements"), rows)


def training_table() -> str:
    runs = json.loads(CURVES.read_text())["runs"]
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        by_name.setdefault(run["name"], {})[run["seed"]] = run
    exact, rows = by_name["AdamW float32"], []
    span = [run["final_loss"] for run in exact.values()]
    for name, seeds in by_name.items():
        losses = [run["final_loss"] for run in seeds.values()]
        off = [run["final_loss"] - exact[seed]["final_loss"] for seed, run in seeds.items()]
        within = sum(min(span) <= loss <= max(span) for loss in losses)
        row = (
            name,
            f"{seeds[0]['bytes_per_parameter']:g}",
            f"{min(losses):.4f} to {max(losses):.4f}",
        )
        rows.append(
            (*row, f"{fmean(losses):.4f}", f"{fmean(off):+.4f}", f"{within} of {len(losses)}")
        )
    head = ("run, 5 seeds", "bytes", "final losses", "mean", "less float32's", "within float32's")
    return pages.markdown(head, rows)


def draw() -> None:
    """Draw the results as ``examples/demo/precision.py`` does where none are missing."""
    sys.path.insert(0, DEMO)
    import precision_plot

    precision_plot.draw(json.loads(CURVES.read_text()), IMAGE)


TABLES = {"codes": codes_table, "peer": peer_table, "training": training_table}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure codes and the peer anew")
    parser.add_argument("--draw", action="store_true", help="draw the picture anew")
    options = parser.parse_args(arguments)
    if options.measure:
        measure()
    if options.draw:
        draw()
    written_pages.rewrite(PAGE, TABLES)


if __name__ == "__main__":
    main()
