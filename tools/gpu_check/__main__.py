"""Checks the package on a machine with a GPU: ``make gpu-check``, ``python -m tools.gpu_check``.

Builds, tests, sanitizes and measures in stages, and writes as it goes: ``results.json`` (figures),
``stages.json`` (how each stage ended), ``summary.md`` (one page), ``report.html``, pictures and
``log.txt``. Exits with 0 if nothing that ran has failed, with 1 if a stage failed or a figure is
below its floor, and with 2 if nothing could be run. docs/internals/gpu_check.md says more.
"""

import argparse
import re
import shutil
import signal
import sys
import time
from pathlib import Path

from bench import ROOT, system
from bench.results import read, write
from tools.gpu_check import stages, summary
from tools.gpu_check.engine import Outcome, Skip, run, share
from tools.gpu_check.plan import STAGES, choose
from tools.gpu_check.stages import Context, Entry, Record, Stage

SHORTEST_S = 5.0  # a stage with less time than this is not started
TAIL_LINES = 30
LOG_BYTES = 8 << 20  # a longer log is cut at its start
MERGED = ("results.json", "stages.json", "log.txt")


class Check:
    """One call of gpu-check: the stages to run, and the record that they add to."""

    def __init__(self, context: Context, plan: list[Stage], deadline: float | None):
        self.context, self.plan, self.deadline = context, plan, deadline
        self.record = Record.open(context.out / "stages.json")
        self.log = context.out / "log.txt"
        self.commit = system.output("git", "describe", "--always", "--dirty")

    def run(self) -> int:
        for index, stage in enumerate(self.plan):
            left = None if self.deadline is None else self.deadline - time.monotonic()
            plan = [(s.expected_s, s.limit_s) for s in self.plan[index:]]
            self.stage(stage, share(left, plan))
            if stage is STAGES[0] and self.record.stages[stage.name].failure:
                return 2
        failures = summary.failures(self.record, self.context.results)
        for failure in failures:
            print(f"gpu-check: {failure}")
        print(f"gpu-check: {'FAILED' if failures else 'no failure'}; see {self.context.out}")
        return int(bool(failures))

    def stage(self, stage: Stage, limit_s: float) -> None:
        """Run one stage and record how it ended, an unexpected error included."""
        previous = self.record.stages.get(stage.name)
        self.context.previous = previous.details if previous else {}
        entry = self.record.start(stage.name, stage.title, limit_s, self.commit or "unknown")
        print(f"gpu-check: {stage.name}: {stage.title} ...", flush=True)
        try:
            if limit_s < SHORTEST_S:
                entry.status, entry.reason = stages.CUT, "no time was left for it"
            else:
                self.process(stage, entry, limit_s)
        except Skip as reason:
            entry.status, entry.reason = stages.SKIPPED, str(reason)
        except KeyboardInterrupt:
            entry.status, entry.reason = stages.CUT, "gpu-check was told to end"
            raise
        finally:
            if entry.status == stages.RUNNING:
                entry.status, entry.reason = stages.FAILED, "gpu-check itself failed in this stage"
            self.keep()
            note = f" ({entry.reason})" if entry.reason else ""
            print(f"gpu-check: {stage.name}: {entry.status}, {entry.seconds:.0f} s{note}")

    def process(self, stage: Stage, entry: Entry, limit_s: float) -> None:
        self.context.figures, self.context.limit_s = read(self.context.results), limit_s
        command = stage.command(self.context)
        self.context.record(stage.name).unlink(missing_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.write_bytes(b"(cut)\n" + self.log.read_bytes()[-LOG_BYTES // 2 :])
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"\n=== {stage.name}: {stage.title} ({entry.date}, {limit_s:.0f} s)\n")

        def update(seconds: float) -> None:
            entry.seconds, so_far = round(seconds, 1), Outcome(stages.RUNNING, seconds, None, "")
            entry.details = stage.collect(self.context, stage, so_far)[2]
            self.keep()

        variables = self.context.environment(**stage.variables)
        outcome = run(command, self.log, limit_s, variables, update)
        entry.status, entry.reason, entry.details = stage.collect(self.context, stage, outcome)
        entry.seconds = round(outcome.seconds, 1)
        if entry.status == stages.TIMEOUT:
            entry.status = stages.TIMEOUT if limit_s >= stage.limit_s else stages.CUT
            entry.reason = f"not done after {limit_s:.0f} s"
        if entry.status != stages.PASSED:
            entry.tail = outcome.output.splitlines()[-TAIL_LINES:]

    def keep(self) -> None:
        self.record.save()
        write(self.context.out / "summary.md", summary.page(self.record, self.context.results))


def gpu_name() -> str | None:
    ask_torch = "import torch; print(torch.cuda.get_device_name())"
    ask_driver = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    # These run in processes of their own: a driver may hang, and this process has to go on.
    found = system.output(*ask_driver) or system.output(sys.executable, "-c", ask_torch)
    return found and found.splitlines()[-1]


def folder_of(gpu: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower().removeprefix("nvidia")).strip("-")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("gpu-check", description=__doc__, formatter_class=text)
    names = ", ".join(stage.name for stage in STAGES)
    parser.add_argument("--form", choices=("quick", "full"), default="quick")
    parser.add_argument("--stages", help=f"only these, separated by commas: {names}")
    parser.add_argument("--time-limit", type=float, help="seconds for all stages together")
    parser.add_argument("--out", type=Path, help="default: bench/results/<gpu>")
    parser.add_argument("--merge", type=Path, help="a folder of an earlier call, to go on from")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: rehearse")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-check")
    options = parser.parse_args(arguments)
    wanted = None if options.stages is None else re.split(r"[,\s]+", options.stages.strip(", "))
    try:
        options.stages = choose(wanted, options.form == "quick")
    except ValueError as error:
        parser.error(str(error))
    return options


def main(arguments: list[str] | None = None) -> int:
    options, begin = parse(arguments), time.monotonic()
    gpu = gpu_name() if options.device == "cuda" else "rehearsal-cpu"
    if gpu is None:
        why = "neither nvidia-smi nor torch shows one; --device cpu rehearses the stages without it"
        print(f"gpu-check: no GPU here: {why}", file=sys.stderr)
        return 2
    out = (options.out or ROOT / "bench" / "results" / folder_of(gpu)).resolve()
    work = options.work.resolve()
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    for name in MERGED if options.merge else ():
        earlier = options.merge / name
        if earlier.exists() and earlier.resolve() != (out / name).resolve():
            shutil.copyfile(earlier, out / name)
    context = Context(sys.executable, options.device, options.form == "quick", out, work)
    deadline = None if options.time_limit is None else begin + options.time_limit
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt
    try:
        return Check(context, options.stages, deadline).run()
    except KeyboardInterrupt:
        print(f"gpu-check: told to end; what was found so far is in {out}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
