"""Checks the package on a machine with a GPU: ``make gpu-check``, or ``python -m bench.gpu_check``.

Builds, tests, sanitizes and measures in stages, and writes as it goes: ``results.json`` (figures),
``stages.json`` (what came of each stage), ``summary.md`` (one page), ``report.html``, pictures and
``log.txt``. Exits with 0 where nothing that ran has failed, with 1 where a stage failed or a figure
is below its floor, and with 2 where nothing could be run. docs/gpu_check.md says more.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench import ROOT
from bench import gpu_check_summary as summary
from bench.gpu_check_engine import SHORTEST_S, Outcome, Skip, run, share
from bench.gpu_check_plan import STAGES, choose
from bench.gpu_check_record import (
    CUT,
    FAILED,
    PASSED,
    RUNNING,
    SKIPPED,
    TIMEOUT,
    Entry,
    Record,
    write,
)
from bench.gpu_check_stages import Context, Stage
from bench.merging import read

TAIL_LINES = 30
LOG_BYTES = 8 << 20  # a longer log is cut at its start
MERGED = ("results.json", "stages.json", "log.txt")


class Check:
    """One call: the stages to run, and the record they add to."""

    def __init__(self, context: Context, stages: list[Stage], deadline: float | None):
        self.context, self.stages, self.deadline = context, stages, deadline
        self.record = Record.open(context.out / "stages.json")
        self.log = context.out / "log.txt"
        self.commit = _commit()

    def run(self) -> int:
        """Run the stages and return the exit status."""
        for index, stage in enumerate(self.stages):
            self.stage(stage, self.limit(index))
            if stage is STAGES[0] and self.record.stages[stage.name].failure:
                return 2
        failures = summary.failures(self.record, self.context.results)
        for failure in failures:
            print(f"gpu-check: {failure}")
        print(f"gpu-check: {'FAILED' if failures else 'no failure'}; see {self.context.out}")
        return int(bool(failures))

    def limit(self, index: int) -> float:
        """Return how long a stage may take, given those that come after it."""
        left = None if self.deadline is None else self.deadline - time.monotonic()
        return share(left, [(s.expected_s, s.limit_s) for s in self.stages[index:]])

    def stage(self, stage: Stage, limit_s: float) -> None:
        """Run one stage and record what came of it, whatever that is."""
        previous = self.record.stages.get(stage.name)
        self.context.previous = previous.details if previous else {}
        entry = self.record.start(stage.name, stage.title, limit_s, self.commit)
        print(f"gpu-check: {stage.name}: {stage.title} ...", flush=True)
        try:
            if limit_s < SHORTEST_S:
                entry.status, entry.reason = CUT, "no time was left for it"
            else:
                self.process(stage, entry, limit_s)
        except Skip as reason:
            entry.status, entry.reason = SKIPPED, str(reason)
        except KeyboardInterrupt:
            entry.status, entry.reason = CUT, "gpu-check was told to end"
            raise
        finally:
            if entry.status == RUNNING:  # an error of gpu-check itself
                entry.status, entry.reason = FAILED, "gpu-check failed in this stage"
            self.keep()
            note = f" ({entry.reason})" if entry.reason else ""
            print(f"gpu-check: {stage.name}: {entry.status}, {entry.seconds:.0f} s{note}")

    def process(self, stage: Stage, entry: Entry, limit_s: float) -> None:
        self.context.figures, self.context.limit_s = read(self.context.results), limit_s
        command = stage.command(self.context)
        self.context.record(stage.name).unlink(missing_ok=True)
        _shorten(self.log)
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"\n=== {stage.name}: {stage.title} ({entry.date}, {limit_s:.0f} s)\n")
        begin = time.monotonic()

        def update() -> None:
            so_far = Outcome(RUNNING, time.monotonic() - begin, None, "")
            entry.seconds = round(so_far.seconds, 1)
            entry.details = stage.collect(self.context, stage, so_far)[2]
            self.keep()

        variables = self.context.environment(**stage.variables)
        outcome = run(command, self.log, limit_s, variables, update)
        entry.status, entry.reason, entry.details = stage.collect(self.context, stage, outcome)
        entry.seconds = round(outcome.seconds, 1)
        if entry.status == TIMEOUT:
            entry.status = TIMEOUT if limit_s >= stage.limit_s else CUT
            entry.reason = f"not done after {limit_s:.0f} s"
        if entry.status != PASSED:
            entry.tail = outcome.output.splitlines()[-TAIL_LINES:]

    def keep(self) -> None:
        """Write the record and the page made of it."""
        self.record.save()
        page = summary.page(self.record, self.context.results)
        write(self.context.out / "summary.md", page)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"


def _shorten(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.write_bytes(b"(cut)\n" + log.read_bytes()[-LOG_BYTES // 2 :])


def _gpu_name() -> str | None:
    """Return the GPU's name as the driver's tool or, without that, torch has it; None without one.

    In processes of their own: a driver may hang, and this process has to outlive that.
    """
    ask_torch = "import torch; print(torch.cuda.get_device_name())"
    for command in (
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
        [sys.executable, "-c", ask_torch],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        if done.stdout.strip():
            return done.stdout.strip().splitlines()[-1]
    return None


def _slug(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("nvidia")).strip("-")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of a call."""
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("gpu-check", description=__doc__, formatter_class=text)
    parser.add_argument("--form", choices=("quick", "full"), default="quick")
    parser.add_argument("--stages", help="only these, separated by commas: " + _names())
    parser.add_argument("--time-limit", type=float, help="seconds for all stages together")
    parser.add_argument("--out", type=Path, help="default: bench/results/<gpu>")
    parser.add_argument("--merge", type=Path, help="a folder of an earlier call, to go on from")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: rehearse")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-check")
    options = parser.parse_args(arguments)
    names = None if options.stages is None else re.split(r"[,\s]+", options.stages.strip(", "))
    try:
        options.stages = choose(names, options.form == "quick")
    except ValueError as error:
        parser.error(str(error))
    return options


def _names() -> str:
    return ", ".join(stage.name for stage in STAGES)


def _told_to_end(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run the check and return its exit status."""
    options = parse(arguments)
    begin = time.monotonic()
    gpu = _gpu_name() if options.device == "cuda" else "rehearsal-cpu"
    if gpu is None:
        print(
            "gpu-check: no GPU here: neither nvidia-smi nor torch shows one; --device cpu "
            "rehearses the stages without one",
            file=sys.stderr,
        )
        return 2
    out = (options.out or ROOT / "bench" / "results" / _slug(gpu)).resolve()
    work = options.work.resolve()
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    for name in MERGED if options.merge else ():
        earlier = options.merge / name
        if earlier.exists() and earlier.resolve() != (out / name).resolve():
            shutil.copyfile(earlier, out / name)
    context = Context(sys.executable, options.device, options.form == "quick", out, work)
    deadline = None if options.time_limit is None else begin + options.time_limit
    signal.signal(signal.SIGTERM, _told_to_end)
    try:
        return Check(context, options.stages, deadline).run()
    except KeyboardInterrupt:
        print(f"gpu-check: told to end; what was found so far is in {out}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
