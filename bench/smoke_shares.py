"""Runs `bench.sanitize_worker` as several processes at once: ``python -m bench.smoke_shares``.

Triton compiles for seconds what then runs in microseconds, and every dtype and precision mode has
kernels of its own. Processes that have different ones to compile do so side by side, and leave them
in Triton's cache for the stages that come after.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import ROOT
from bench.gpu_check_record import write

TICK_S = 0.5


def run(jobs: int, record: Path, words: Sequence[str]) -> int:
    """Run every share of the cases in a process of its own; returns how many failures there were.

    Args:
        jobs: the number of shares.
        record: what all of them found is written there, again and again.
        words: further arguments of the worker.
    """
    parts = [record.with_name(f"{record.name}.{number}") for number in range(jobs)]
    for part in parts:
        part.unlink(missing_ok=True)  # of an earlier call
    processes = [_start(number, jobs, part, words) for number, part in enumerate(parts)]
    while any(process.poll() is None for process in processes):
        time.sleep(TICK_S)
        write(record, json.dumps(merged(parts, [None] * jobs), indent=1))
    found = merged(parts, [process.returncode for process in processes])
    write(record, json.dumps(found, indent=1))
    return found["failed"]


def merged(parts: Sequence[Path], statuses: Sequence[int | None]) -> dict[str, Any]:
    """Return the shares' records as one.

    Args:
        parts: the records; a process that has not come so far has none.
        statuses: how the processes ended, None for those that run. One that died without a failed
            case to show for it is a failure itself.
    """
    total: dict[str, Any] = {"passed": 0, "failed": 0, "failures": [], "notes": []}
    for number, (part, status) in enumerate(zip(parts, statuses, strict=True)):
        found = json.loads(part.read_text()) if part.exists() else {}
        for key in total:
            total[key] += found.get(key, type(total[key])())
        if status and not found.get("failed"):
            total["failed"] += 1
            text = [f"its process ended with status {status}; the log says more"]
            total["failures"].append({"test": f"share {number} of {len(parts)}", "text": text})
    total["notes"] = list(dict.fromkeys(total["notes"]))
    return total


def _start(number: int, jobs: int, part: Path, words: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bench.sanitize_worker", "--share", f"{number}/{jobs}"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}  # the processes share the cores
    return subprocess.Popen([*command, "--json", str(part), *words], cwd=ROOT, env=variables)


def main(arguments: list[str] | None = None) -> int:
    """Run the shares and return 1 if a case failed in any."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="Other words are the worker's.")
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options, words = parser.parse_known_args(arguments)
    return int(run(options.jobs, options.json, words) > 0)


if __name__ == "__main__":
    sys.exit(main())
