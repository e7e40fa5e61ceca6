"""Predicts the time of a step on each GPU, without measuring: ``python -m tools.traffic.model``.

The time is bytes of memory over the bandwidth of a copy, plus launches times the cost of a launch.
The bytes are counted (`bench.traffic`), less those that L2 keeps between Adafactor's passes (`l2`).
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from bench import results, setups, traffic
from bench.display import Display
from bench.shapes import SHAPES, Shapes, numel
from bench.traffic import Kind
from fused_optim.ops import FAMILIES
from tools.traffic import l2

L2_SHARE = 0.8
"""The share of L2 that holds data from one pass to the next. It is an assumption: other live data,
replacement that is not LRU, and lines that both partitions keep take the rest."""

LAUNCH_US = 4.0  # microseconds that a launch adds to a step: start, fill and drain; assumed
BLOCKS_PER_SM = 2  # blocks of Adafactor's tile kernels that an SM holds; they are compiled for two


class Gpu(NamedTuple):
    """The figures of a device that the model uses."""

    copy_gb_per_s: float  # read plus written
    processors: int
    l2_bytes: int


# SMs and L2 are from data sheets (H200's L2 is taken to be H100's). The copy bandwidths of H100 and
# H200 were reported from such machines: 0.90 of the data sheets'. The others' are assumed to be.
GPUS = {
    "A100 80GB": Gpu(0.9 * 2039.0, 108, 40 << 20),
    "H100 SXM": Gpu(3000.0, 132, 50 << 20),
    "H200": Gpu(4300.0, 132, 50 << 20),
    "B200": Gpu(0.9 * 8000.0, 148, 126 << 20),
}


class Step(NamedTuple):
    """The step of a setup: its kind on matrices of one dtype, and whether it clips to a norm."""

    kind: Kind
    clips: bool


@functools.cache
def own_steps() -> dict[tuple[str, str], Step]:
    """Return the steps of this package's setups, by the names and dtypes of a result file.

    An optimizer of each setup is constructed for it; the first one takes torch seconds.
    """
    found = {}
    for each in setups.SETUPS.values():
        for dtype in each.dtypes if each.source == setups.OURS else ():
            param = torch.zeros(1, dtype=setups.DTYPES[dtype], requires_grad=True)
            optimizer = each.optimizer([param])
            clips = optimizer.max_grad_norm is not None
            found[each.name, dtype] = Step(traffic.kind_of(optimizer, param.dtype), clips)
    return found


def launches(step: Step, shapes: Shapes) -> int:
    """Return the launches of a step; a bucket whose tensors are all visited once has fewer."""
    kinds = {l2.kind_of_tensor(step.kind, shape) for shape in shapes}
    if step.kind.op == "adafactor" and all(kind.visited for kind in kinds):
        return max(traffic.rows()[kind]["launches"] for kind in kinds)
    return traffic.counted_launches(step.kind.op, clip=step.clips)


def predict(step: Step, shapes: Shapes, gpu: Gpu) -> dict[str, Any]:
    """Predict a step on tensors of one dtype; bytes are per parameter.

    Counted bytes are those that kernels load and store; L2 keeps some of them from memory.
    """
    total, kind = numel(shapes), step.kind
    if FAMILIES[kind.op].elementwise:
        moved = counted = float(traffic.moved(kind) * total)
    else:
        counted = sum(traffic.moved(l2.kind_of_tensor(kind, s)) * numel([s]) for s in shapes)
        blocks, capacity = gpu.processors * BLOCKS_PER_SM, gpu.l2_bytes * L2_SHARE
        moved = sum(l2.adafactor(kind, shapes, blocks, capacity).values())
    norm = traffic.clip_bytes(kind) * total if step.clips else 0.0
    number = launches(step, shapes)
    return {
        "counted B/param": (counted + norm) / total,
        "memory B/param": (moved + norm) / total,
        "launches": number,
        "predicted ms": (moved + norm) / gpu.copy_gb_per_s / 1e6 + number * LAUNCH_US / 1e3,
    }


def predictions(
    gpus: Sequence[str], lists: Sequence[str], shown: Sequence[tuple[str, str]]
) -> pd.DataFrame:
    cases = [(shapes, *setup, gpu) for shapes in lists for setup in shown for gpu in gpus]
    found = [
        predict(own_steps()[name, dtype], SHAPES[shapes], GPUS[gpu])
        for shapes, name, dtype, gpu in cases
    ]
    names = pd.DataFrame(cases, columns=["shapes", "setup", "dtype", "GPU"])
    return names.join(pd.DataFrame(found))


def compare(path: Path) -> pd.DataFrame:
    """Return this package's steps of a result file of ``python -m bench``, with predictions.

    The predictions use the file's own copy bandwidth, L2 and SMs. The quotient of measured and
    predicted time is 1 where the model is right, and above 1 where the model is too fast.
    """
    measured = results.load(path)
    machine, rows = measured.machine, measured.frame("rows")
    rows = rows[(rows.source == setups.OURS) & ~rows.backend.isin(("cpu", "eager"))]
    rows = rows[["shapes", "optimizer", "dtype", "ms"]].rename(columns={"ms": "measured ms"})
    found = []
    for row in rows.itertuples():
        step, shapes = own_steps().get((row.optimizer, row.dtype)), SHAPES.get(row.shapes)
        if step and shapes:
            gpu = Gpu(measured.copy.gb_per_s, machine.multiprocessors, machine.l2_bytes)
            found.append(predict(step, shapes, gpu)["predicted ms"])
        else:
            found.append(float("nan"))
    rows["predicted ms"] = found
    rows["measured/predicted"] = rows["measured ms"] / rows["predicted ms"]
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m tools.traffic.model", description=__doc__)
    parser.add_argument("--gpus", nargs="+", choices=GPUS, default=list(GPUS), metavar="GPU")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="LIST")
    parser.add_argument("--only", metavar="TEXTS", help="setups whose names contain one of these")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="written by `python -m bench`")
    options = parser.parse_args(arguments)
    display, only = Display(), options.only
    if options.compare:
        found = compare(options.compare)
        if found.empty:
            return display.say("the file has no measured rows of this package's GPU kernels")
        return display.table("measured beside predicted", found)
    best = [key for key in own_steps() if key[0] in setups.BEST_KNOWN]
    shown = [key for key in own_steps() if setups.named(key[0], only)] if only else best
    if not shown:
        parser.error(f"--only {only}: no setup of this package has that in its name")
    found = predictions(options.gpus, options.shapes, shown)
    display.table("predicted, not measured", found)
    display.say(f"{L2_SHARE:.0%} of L2 kept between passes, {LAUNCH_US:g} us a launch: assumed")


if __name__ == "__main__":
    main()
