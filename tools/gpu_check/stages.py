"""The stages of gpu-check: their definition, what they share, and the records of how each ended."""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench import ROOT
from bench.results import Results, merged, read, write
from tools.gpu_check.engine import Outcome

SANITIZER_EXIT = 86
FORMAT = 1

RUNNING, PASSED, FAILED = "running", "passed", "failed"
TIMEOUT, CUT, SKIPPED = "timeout", "cut", "skipped"
"""A stage that reached its own limit is a timeout; one that reached the end of the call was cut."""


@dataclass
class Entry:
    """The record of a stage."""

    status: str
    title: str
    date: str = ""
    commit: str = ""
    seconds: float = 0.0
    limit_s: float = 0.0
    reason: str = ""  # why the stage did not pass
    details: dict[str, Any] = field(default_factory=dict)  # recorded by its process
    tail: list[str] = field(default_factory=list)  # the end of its output, if it did not pass

    @property
    def failure(self) -> bool:
        """Whether the stage fails the whole check: it found a fault, or it hung."""
        return self.status in (FAILED, TIMEOUT) or bool(self.details.get("failed"))


@dataclass
class Record:
    """The entries of ``stages.json`` by stage, in the order in which stages were first run."""

    path: Path
    stages: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> "Record":
        """Return the record of earlier calls; an unreadable file counts as no record."""
        data = read_json(path) or {}
        if data.get("format") != FORMAT:
            return cls(path)
        stages = {name: Entry(**entry) for name, entry in data["stages"].items()}
        for entry in stages.values():
            if entry.status == RUNNING:
                entry.status, entry.reason = CUT, "everything was killed while it ran"
        return cls(path, stages)

    def start(self, name: str, title: str, limit_s: float, commit: str) -> Entry:
        date = time.strftime("%Y-%m-%d %H:%M")
        self.stages[name] = Entry(RUNNING, title, date, commit, limit_s=round(limit_s, 1))
        self.save()
        return self.stages[name]

    def save(self) -> None:
        data = {name: asdict(entry) for name, entry in self.stages.items()}
        write(self.path, json.dumps({"format": FORMAT, "stages": data}, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Return the content of a file, or None if its process has not written it whole."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


@dataclass
class Context:
    """What the stages of one call share."""

    python: str  # the interpreter that everything runs under
    device: str  # "cuda" or, for a rehearsal, "cpu"
    quick: bool  # whether tests and benchmarks run on a sample of the cases
    out: Path  # the folder of the results
    work: Path  # the folder of records, and of the build
    found: dict[str, Any] = field(default_factory=dict)  # by the first stage: the machine
    previous: dict[str, Any] = field(default_factory=dict)  # this stage's earlier details
    figures: Results | None = None  # measured before the present stage
    limit_s: float = 0.0  # how long the present stage may take
    from_scratch: bool = False  # whether nothing was compiled before

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
        """Return the environment variables of a stage.

        Modules are found in the build, then in the checkout (bench and tools), then on the caller's
        PYTHONPATH, where a machine without network may have the peers.
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
    """Take the record as it is; the reason of a failure is the last line of the output."""
    return outcome.status, outcome.reason, read_json(context.record(stage.name)) or {}


@dataclass(frozen=True)
class Stage:
    """One step of the check."""

    name: str  # for --stages, which also takes each part of it that ends before a "-"
    title: str
    expected_s: float  # how long the stage takes if nothing fails
    limit_s: float
    command: Callable[[Context], list[str]]  # may raise Skip
    collect: Collect = collect_record
    variables: dict[str, str] = field(default_factory=dict)  # in addition to those of all stages
    full_only: bool = False  # belongs to the full form alone


def collect_probe(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    status, reason, context.found = collect_record(context, stage, outcome)
    if status == "passed" and context.on_gpu and not context.found.get("gpu"):
        reason = "torch sees no GPU; --device cpu rehearses the stages without one"
        return "failed", reason, context.found
    return status, reason, context.found


def collect_build(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    """Fail if the extension is missing: the package is built without it if it doesn't compile.

    The time of the whole build is kept, because later calls build little again.
    """
    libraries = sorted((context.site / "fused_optim").glob("_C*.so"))
    size = libraries[0].stat().st_size if libraries else None
    whole = outcome.seconds if size and context.from_scratch and outcome.status == PASSED else None
    kept = round(whole, 1) if whole else context.previous.get("whole_seconds")
    details = {"extension_bytes": size, "whole_seconds": kept}
    if outcome.status == PASSED and context.on_gpu and not libraries:
        lines = [line for line in outcome.output.splitlines() if "without its CUDA" in line]
        return "failed", lines[-1] if lines else "the CUDA extension was not built", details
    return outcome.status, outcome.reason, details


def summarise(path: Path) -> dict[str, Any]:
    """Return the counts of a JUnit file, and the first lines of the first failures."""
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError):  # pytest was killed before it wrote the file
        cases = []
    marks = [(f"{case.get('classname')}::{case.get('name')}", m) for case in cases for m in case]
    failed = [(name, m.text or "") for name, m in marks if m.tag in ("failure", "error")]
    skipped = [m.get("message", "") for _, m in marks if m.tag == "skipped"]
    return {
        "passed": len(cases) - len({name for name, _ in failed}) - len(skipped),
        "failed": len({name for name, _ in failed}),
        "skipped": len(skipped),
        "failures": [{"test": name, "text": essence(text)} for name, text in failed[:8]],
        "skip_reasons": dict(Counter(skipped).most_common(6)),
    }


def essence(text: str) -> list[str]:
    """Return the most telling lines of a failure: the errors, and where they were raised."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E ")]
    places = [line for line in lines if not line.startswith(("E ", ">", " ", "_")) and ":" in line]
    return errors[:12] + places[-2:] if errors else lines[-14:]


def collect_tests(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    details = summarise(context.record(stage.name))
    if details["failed"]:
        return "failed", f"{details['failed']} tests failed", details
    if outcome.returncode == 5:  # pytest's status for an empty selection
        return "skipped", "no test is selected", details
    if outcome.status == "passed" and not details["passed"] and details["skip_reasons"]:
        return "skipped", f"all tests: {next(iter(details['skip_reasons']))}", details
    return outcome.status, outcome.reason if outcome.status == "failed" else "", details


def collect_figures(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    """Add the stage's figures to those of other stages and calls; the summary judges them."""
    measured = read(context.record(stage.name))
    figures = merged(context.figures, measured)
    if figures is not None:
        figures.save(context.results)
    counts = {name: len(getattr(measured, name, ())) for name in ("ratios", "rows", "memory")}
    details: dict[str, Any] = {"notes": [f"{n} {name}" for name, n in counts.items() if n]}
    lines = [line for line in outcome.output.splitlines() if line.startswith("FAILED")]
    if lines:
        details["failures"] = [{"test": line, "text": []} for line in lines]
        return "failed", f"{len(lines)} measurements failed", details
    if outcome.returncode == 1 and "below their floors" in outcome.output:
        return "passed", "figures are below their floors", details
    return outcome.status, outcome.reason, details


def collect_sanitizer(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    """Tell an error that the sanitizer found in a kernel from a sanitizer that can't run here."""
    found = re.findall(r"(?:ERROR SUMMARY: (\d+) error|SUMMARY: (\d+) hazard)", outcome.output)
    errors = sum(int(a or b) for a, b in found)
    lines = [line for line in outcome.output.splitlines() if line.startswith("=========")]
    spoken = [line.strip("= ") for line in lines if line.strip("= ")]
    details = summarise(context.record(stage.name))
    details |= {"errors": errors if found else None, "lines": spoken[:12]}
    if errors or outcome.returncode == SANITIZER_EXIT:
        return "failed", f"{stage.name.partition('-')[0]} found {errors} errors", details
    if outcome.status == "timeout" or found and outcome.status == "passed":
        return outcome.status, "", details
    if found or "Traceback" in outcome.output:
        return "failed", outcome.reason, details
    why = next((s for s in spoken if "COMPUTE-SANITIZER" not in s), outcome.reason)
    return "skipped", f"compute-sanitizer does not run here: {why}", details
