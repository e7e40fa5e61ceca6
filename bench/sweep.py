"""What a step costs by number of tensors and by number of parameters: ``python -m bench.sweep``.

Two sweeps: ten million parameters split into 1 to 10,000 tensors, and 16 tensors of 10 thousand to
10 billion parameters together, as far as memory goes. Lists grow from the cheapest to the dearest,
so that a run that is out of time has the lines' beginnings.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.session import Session
from bench.setups import SETUPS
from bench.sweep_shapes import FIXED_SIZE, FIXED_TENSORS, names_of

TENSORS = 16
PARAMETERS = 10_000_000
MOST = {"cpu": 10**8, "cuda": 10**10}

# What is swept, with its dtype. The slow ones are left out of lists that take them minutes.
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
QUICK = SETUPS_SWEPT[:2] + SETUPS_SWEPT[3:8]


def lists(device: str, quick: bool) -> list[str]:
    """Return the names of the lists, the cheapest first."""
    counts = (1, 100, 10_000) if quick else (1, 10, 100, 1000, 10_000)
    tops = (
        (10**4, 10**6, 10**8, 10**9)
        if quick
        else (*(10**k for k in range(4, 10)), 3 * 10**9, 10**10)
    )
    sizes = [n for n in tops if n <= MOST[device]]
    points = names_of(FIXED_TENSORS, [(TENSORS, size // TENSORS) for size in sizes])
    return [*points, *names_of(FIXED_SIZE, [(n, PARAMETERS // n) for n in counts])]


def sweep(session: Session, setups: Sequence[tuple[str, str]], names: Sequence[str]) -> None:
    """Measure every list with every setup, all setups of one list before the next list."""
    for name in names:
        for setup, dtype in setups:
            case = f"{setup}, {name}, {dtype}"
            measure = functools.partial(session.measure_row, SETUPS[setup], name, dtype)
            done = session.attempt(case, (SETUPS[setup],), measure)
            print(f"{case}: {'measured' if done else session.results.missing[-1].why}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure the sweep and return 1 if one of this package's or torch's optimizers failed."""
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
    device = torch.device(kind)
    session = Session(device, rounds, json=options.json, deadline=deadline, warm_up=0.05)
    names = [n for n in lists(kind, options.quick) if _parameters(n) <= options.most]
    session.measure_copy()
    sweep(session, QUICK if options.quick else SETUPS_SWEPT, names)
    for failure in session.failures:
        print(f"FAILED  {failure}")
    return int(bool(session.failures))


def _parameters(name: str) -> int:
    tensors, numel = name.rpartition("-")[2].split("x")
    return int(tensors) * int(numel)


if __name__ == "__main__":
    sys.exit(main())
