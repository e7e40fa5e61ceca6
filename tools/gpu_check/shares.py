"""Runs `tools.gpu_check.kernels` as several processes: ``python -m tools.gpu_check.shares``.

Triton compiles for seconds what then runs in microseconds, and every dtype and precision mode has
kernels of its own. Processes that have different ones to compile do so side by side, and leave them
in Triton's cache for the stages that come after.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import ROOT
from tools.gpu_check.record import Tally, read_json

TICK_S = 0.5


def run(jobs: int, record: Path, words: Sequence[str]) -> int:
    """Run every share of the cases, write what all found and return how many failures there were.

    Args:
        jobs: the number of shares, each a process.
        record: the file that is rewritten again and again.
        words: further arguments of the worker.
    """
    parts = [record.with_name(f"{record.name}.{number}") for number in range(jobs)]
    command = [sys.executable, "-m", "tools.gpu_check.kernels", *words]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}  # the processes share the cores
    processes = []
    for number, part in enumerate(parts):
        part.unlink(missing_ok=True)  # of an earlier call
        own = ["--share", f"{number}/{jobs}", "--json", str(part)]
        processes.append(subprocess.Popen([*command, *own], cwd=ROOT, env=variables))
    while any(process.poll() is None for process in processes):
        time.sleep(TICK_S)
        merged(record, parts, [None] * jobs).write()
    found = merged(record, parts, [process.returncode for process in processes])
    found.write()
    return found.failed


def merged(record: Path, parts: Sequence[Path], statuses: Sequence[int | None]) -> Tally:
    """Return the shares' records as one; a process that has not come so far has none.

    ``statuses`` are how the processes ended, None for those that run. One that died without a
    failed case to show for it is a failure itself.
    """
    total = Tally(record)
    for number, (part, status) in enumerate(zip(parts, statuses, strict=True)):
        found = read_json(part) or {}
        total.passed += found.get("passed", 0)
        total.failed += found.get("failed", 0)
        total.failures += found.get("failures", [])
        total.notes += [note for note in found.get("notes", []) if note not in total.notes]
        if status and not found.get("failed"):
            text = f"its process ended with status {status}; the log says more"
            total.fail(f"share {number} of {len(parts)}", [text])
    return total


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Other words are the worker's.")
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options, words = parser.parse_known_args(arguments)
    return int(run(options.jobs, options.json, words) > 0)


if __name__ == "__main__":
    sys.exit(main())
