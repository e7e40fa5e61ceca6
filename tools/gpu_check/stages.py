"""What a stage of gpu-check is, and what is made of the process that it ran."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import ROOT
from bench.merging import merged, read
from bench.results import Results
from tools.gpu_check.engine import Outcome
from tools.gpu_check.record import read_json
from tools.gpu_check.recorder import summarise

SANITIZER_EXIT = 86


@dataclass
class Context:
    """What the stages of one call share."""

    python: str  # the interpreter that everything runs under
    device: str  # "cuda" or, for a rehearsal, "cpu"
    quick: bool  # whether tests and benchmarks take a sample of what there is
    out: Path  # the folder that is handed back
    work: Path  # the folder of records, and of the build
    found: dict[str, Any] = field(default_factory=dict)  # what the machine is, by the first stage
    previous: dict[str, Any] = field(default_factory=dict)  # the stage's details in an earlier call
    figures: Results | None = None  # what was measured before the present stage
    limit_s: float = 0.0  # how long the present stage may take

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def results(self) -> Path:
        return self.out / "results.json"

    @property
    def site(self) -> Path:
        return self.work / "site"

    def record(self, stage: str) -> Path:
        return self.work / f"{stage}.json"

    def environment(self, **more: str) -> dict[str, str]:
        """Return the variables of a stage: the build, then the checkout for bench and tools.

        Then what PYTHONPATH names, where a bare machine may keep the peers that it was brought.
        """
        hidden = ("FUSED_OPTIM_", "TRITON_INTERPRET")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
        if not self.on_gpu:  # no kernels are built for a CPU
            more = {k: v for k, v in more.items() if not k.startswith("FUSED_OPTIM_")}
        places = (str(self.site), str(ROOT), os.environ.get("PYTHONPATH"))
        path = os.pathsep.join(filter(None, places))
        return {**clean, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


Collected = tuple[str, str, dict[str, Any]]  # Status, reason and details of a stage that has run

Collect = Callable[[Context, "Stage", Outcome], Collected]


def collect_record(context: Context, stage: "Stage", outcome: Outcome) -> Collected:
    """Take the record as it is; a process that fails gives its last line for a reason."""
    details = read_json(context.record(stage.name)) or {}
    return outcome.status, "" if outcome.status == "passed" else outcome.last_line, details


@dataclass(frozen=True)
class Stage:
    """One step of the check."""

    name: str  # what --stages calls it; so do all of its parts before a "-"
    title: str
    expected_s: float  # what it takes when all is well
    limit_s: float
    command: Callable[[Context], list[str]]  # which may raise Skip
    collect: Collect = collect_record
    variables: dict[str, str] = field(default_factory=dict)  # beside those of all stages
    full_only: bool = False  # belongs to the full form alone


def collect_probe(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    status, reason, details = collect_record(context, stage, outcome)
    context.found = details
    if status == "passed" and context.on_gpu and not details.get("gpu"):
        return "failed", "torch sees no GPU; --device cpu rehearses the stages without one", details
    return status, reason, details


def collect_build(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    """Keep the time of a whole build, which a later call finds done for the most part."""
    status, reason, details = collect_record(context, stage, outcome)
    whole = details.get("seconds") if details.get("from_scratch") else None
    details["whole_seconds"] = whole or context.previous.get("whole_seconds")
    return status, reason, details


def collect_tests(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    details = summarise(context.record(stage.name))
    if details["failed"]:
        return "failed", f"{details['failed']} tests failed", details
    if outcome.returncode == 5:  # pytest's word for an empty selection
        return "skipped", "no test is selected", details
    if outcome.status == "passed" and not details["passed"] and details["skip_reasons"]:
        return "skipped", f"all tests: {next(iter(details['skip_reasons']))}", details
    return outcome.status, outcome.last_line if outcome.status == "failed" else "", details


def collect_figures(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    """Add the figures to those of other stages and calls; the summary judges them."""
    measured = read(context.record(stage.name))
    figures = merged(context.figures, measured)
    if figures is not None:
        figures.save(context.results)
    details: dict[str, Any] = {}
    if measured is not None:
        counts = {name: len(getattr(measured, name)) for name in ("ratios", "rows", "memory")}
        details["notes"] = [f"{n} {name}" for name, n in counts.items() if n]
    lines = [line for line in outcome.output.splitlines() if line.startswith("FAILED")]
    if lines:
        details["failures"] = [{"test": line, "text": []} for line in lines]
        return "failed", f"{len(lines)} measurements failed", details
    if outcome.returncode == 1 and "below their floors" in outcome.output:
        return "passed", "figures are below their floors", details
    return outcome.status, "" if outcome.status == "passed" else outcome.last_line, details


def collect_sanitizer(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    """Tell an error of a kernel from a tool that can't run here."""
    details = summarise(context.record(stage.name))
    found = re.findall(r"(?:ERROR SUMMARY: (\d+) error|SUMMARY: (\d+) hazard)", outcome.output)
    errors = sum(int(a or b) for a, b in found)
    lines = [line for line in outcome.output.splitlines() if line.startswith("=========")]
    spoken = [line.strip("= ") for line in lines if line.strip("= ")]
    details = {**details, "errors": errors if found else None, "lines": spoken[:12]}
    if errors or outcome.returncode == SANITIZER_EXIT:
        return "failed", f"{stage.name.partition('-')[0]} found {errors} errors", details
    if outcome.status == "timeout" or found and outcome.status == "passed":
        return outcome.status, "", details
    if found or "Traceback" in outcome.output:
        return "failed", outcome.last_line, details
    why = next((s for s in spoken if "COMPUTE-SANITIZER" not in s), outcome.last_line)
    return "skipped", f"compute-sanitizer does not run here: {why}", details
