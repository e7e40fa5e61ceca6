"""What a step costs by number of tensors and by number of parameters: ``python -m bench.sweep``.

Two sweeps: ten million parameters split into 1 to 10,000 tensors, and 16 tensors of 10 thousand to
10 billion parameters together, as far as memory goes. Lists grow from the cheapest to the dearest,
so that a run that is out of time has the lines' beginnings.
"""

import argparse
import functools
import math
import sys
import time
from pathlib import Path

import torch

from bench.cli import Task, report, run
from bench.display import Display
from bench.run import Session
from bench.setups import SETUPS
from bench.shapes import FIXED_SIZE, FIXED_TENSORS, SHAPES, numel, swept

TENSORS = 16
PARAMETERS = 10_000_000
MOST = {"cpu": 10**8, "cuda": 10**10}

SETUPS_SWEPT: tuple[tuple[str, str], ...] = (
    ("AdamW", "fp32"),
    ("torch AdamW fused", "fp32"),
    ("torch AdamW foreach", "fp32"),
    ("torch_compat.AdamW", "bf16"),
    ("torch AdamW fused", "bf16"),
    ("Adafactor", "fp32"),
    ("transformers Adafactor", "fp32"),
    ("torch Adafactor", "fp32"),
    ("Adafactor stochastic", "bf16"),
)
"""What is swept, with its dtype."""

QUICK = SETUPS_SWEPT[:2] + SETUPS_SWEPT[3:8]


def lists(device: str, quick: bool) -> list[str]:
    counts = (1, 100, 10_000) if quick else (1, 10, 100, 1000, 10_000)
    sizes = (4, 6, 8, 9) if quick else range(4, 11)
    tops = [10**k for k in sizes] if quick else sorted([*(10**k for k in sizes), 3 * 10**9])
    points = [swept(FIXED_TENSORS, TENSORS, n // TENSORS) for n in tops if n <= MOST[device]]
    return [*points, *(swept(FIXED_SIZE, n, PARAMETERS // n) for n in counts)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.sweep")
    parser.add_argument("--device", choices=tuple(MOST), help="cuda where there is one")
    parser.add_argument("--json", type=Path, required=True, help="the result file")
    parser.add_argument("--quick", action="store_true", help="fewer setups and lists")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--most", type=float, default=math.inf, help="parameters of a list")
    parser.add_argument("--time-limit", type=float, default=math.inf, help="in seconds")
    options = parser.parse_args(arguments)
    kind = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    deadline = time.monotonic() + options.time_limit
    rounds = options.rounds or (7 if options.quick else 15)
    session = Session(
        torch.device(kind), rounds, json=options.json, deadline=deadline, warm_up=0.05
    )
    work = []
    for name in lists(kind, options.quick):
        if numel(SHAPES[name]) > options.most:
            continue
        for setup, dtype in QUICK if options.quick else SETUPS_SWEPT:
            measure = functools.partial(session.measure_row, SETUPS[setup], name, dtype)
            work.append(Task(f"{setup}, {name}, {dtype}", (SETUPS[setup],), dtype, measure))
    display = Display()
    run(session, work, display)
    return report(session, None, display)


if __name__ == "__main__":
    sys.exit(main())
