"""Ratios of two optimizers measured in turns: ``python -m bench.compare``.

The two steps alternate, A B A B, so that a machine whose speed drifts slows both alike. Ratios are
taken pair by pair; above 1 this package is the faster one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import fused_optim
from bench.cases import CPU_GOALS, CPU_OBSERVED, SETUPS, Goal
from bench.shapes import SHAPES, numel


def measure(goal: Goal, rounds: int) -> dict[str, Any]:
    """Return the times of both optimizers in milliseconds and the ratios of their pairs."""
    baseline, ours = (SETUPS[name].optimizer(goal.shapes) for name in (goal.baseline, goal.ours))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for optimizer, record in zip((baseline, ours), times, strict=True):
            start = time.perf_counter()
            optimizer.step()
            record.append(1e3 * (time.perf_counter() - start))
    ratios = sorted(b / o for b, o in zip(*times, strict=True))
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "ours": goal.ours,
        "baseline": goal.baseline,
        "shapes": goal.shapes,
        "parameters": numel(SHAPES[goal.shapes]),
        "baseline_ms": round(statistics.median(times[0]), 2),
        "ours_ms": round(statistics.median(times[1]), 2),
        "ratio": round(median, 2),
        "ratio_quartiles": [round(low, 2), round(high, 2)],
        "goal": goal.ratio or None,
        "reached": median >= goal.ratio if goal.ratio else None,
    }


def machine() -> dict[str, Any]:
    """Return what a reader needs to place the figures."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "fused_optim": fused_optim.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main(arguments: list[str] | None = None) -> int:
    """Measure every goal, print a table and return 1 if one was missed."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.compare")
    parser.add_argument("--rounds", type=int, default=11, help="steps of each optimizer")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "rows": []}
    print("  ".join(f"{key}: {value}" for key, value in results["machine"].items()))
    print(f"{'ours':26}{'baseline':32}{'shapes':12}{'baseline':>10}{'ours':>10}{'ratio':>8}  goal")
    for goal in [*CPU_GOALS, *CPU_OBSERVED]:
        row = measure(goal, options.rounds)
        results["rows"].append(row)
        verdict = {None: "", True: "reached", False: "MISSED"}[row["reached"]]
        print(
            f"{row['ours']:26}{row['baseline']:32}{row['shapes']:12}{row['baseline_ms']:>8} ms"
            f"{row['ours_ms']:>7} ms{row['ratio']:>8}  {row['goal'] or ''} {verdict}",
            flush=True,
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(any(row["reached"] is False for row in results["rows"]))


if __name__ == "__main__":
    sys.exit(main())
