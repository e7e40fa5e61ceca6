"""The stages of gpu-check: what each runs, for how long, and what it leaves for the record.

In this order, because what fails early says most about what would fail later.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import ROOT
from bench.gpu_check_engine import Outcome, Skip, module
from bench.results import Results

KERNEL_BACKENDS = ("cuda", "triton")
SANITIZER_EXIT = 86


@dataclass
class Context:
    """What the stages of one call share.

    Attributes:
        python: the interpreter that everything runs under.
        device: "cuda" or, for a rehearsal, "cpu".
        quick: whether tests and benchmarks take a sample of what there is.
        out: the folder that is handed back.
        work: the folder of records, and of the build in ``site``.
        found: what the machine is; the first stage fills it in.
        previous: details of the present stage in an earlier call.
        figures: what was measured before the present stage.
        limit_s: how long the present stage may take.
    """

    python: str
    device: str
    quick: bool
    out: Path
    work: Path
    found: dict[str, Any] = field(default_factory=dict)
    previous: dict[str, Any] = field(default_factory=dict)
    figures: Results | None = None
    limit_s: float = 0.0

    @property
    def results(self) -> Path:
        """The figures: what the benchmarks write and the pictures are drawn from."""
        return self.out / "results.json"

    @property
    def site(self) -> Path:
        """Where the package is built."""
        return self.work / "site"

    def record(self, stage: str) -> Path:
        """Return the file that a stage's process writes."""
        return self.work / f"{stage}.json"

    def environment(self, **more: str) -> dict[str, str]:
        """Return the variables of a stage: the build, then the checkout for ``bench``.

        Then what PYTHONPATH names, where a bare machine may keep the peers that it was brought.
        """
        hidden = ("FUSED_OPTIM_", "TRITON_INTERPRET")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
        if self.device == "cpu":  # no kernels are built for a CPU
            more = {k: v for k, v in more.items() if k != "FUSED_OPTIM_TEST_BACKEND"}
        places = (str(self.site), str(ROOT), os.environ.get("PYTHONPATH"))
        path = os.pathsep.join(filter(None, places))
        return {**clean, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


Collected = tuple[str, str, dict[str, Any]]
"""Status, reason and details of a stage that has run."""


@dataclass(frozen=True)
class Stage:
    """One step of the check.

    Attributes:
        name: what `--stages` calls it; all of a name's parts before a "-" name it too.
        title: what it does, for readers.
        expected_s: what it takes when all is well.
        limit_s: what it may take.
        command: returns the command, or raises `Skip`.
        collect: what came of it, from its process and from its record.
        variables: environment variables beside those of all stages.
        full_only: whether it belongs to the full form alone.
    """

    name: str
    title: str
    expected_s: float
    limit_s: float
    command: Callable[[Context], list[str]]
    collect: Callable[[Context, Stage, Outcome], Collected]
    variables: dict[str, str] = field(default_factory=dict)
    full_only: bool = False


def read_json(path: Path) -> Any:
    """Return a record, or None where a process has not come to write one."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None


def last_line(output: str) -> str:
    """Return the last line of an output that says something."""
    return next((line for line in reversed(output.splitlines()) if line.strip()), "")[:300]


def collect_record(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    """Take the record as it is; a process that fails gives its last line for a reason."""
    details = read_json(context.record(stage.name)) or {}
    reason = "" if outcome.status == "passed" else last_line(outcome.output)
    return outcome.status, reason, details


# --- environment, build ---------------------------------------------------------------------------


def probe_command(context: Context) -> list[str]:
    return module(context.python, "bench.gpu_check_probe", context.record("environment"))


def collect_probe(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    status, reason, details = collect_record(context, stage, outcome)
    context.found = details
    if status == "passed" and context.device == "cuda" and not details.get("gpu"):
        return "failed", "torch sees no GPU; --device cpu rehearses the stages without one", details
    return status, reason, details


def build_command(context: Context) -> list[str]:
    words = [context.site, context.record("build")]
    words += [context.found["gpu"]["architecture"]] if context.device == "cuda" else []
    return module(context.python, "bench.gpu_check_build", *words)


def collect_build(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    """Keep the time of a whole build, which a later call finds done for the most part."""
    status, reason, details = collect_record(context, stage, outcome)
    whole = details.get("seconds") if details.get("from_scratch") else None
    details["whole_seconds"] = whole or context.previous.get("whole_seconds")
    return status, reason, details


# --- kernels on their own: smoke test, sanitizers, tensors beyond 2^31 ----------------------------


def _worker(
    context: Context, stage: str, backend: str, *arguments: object, jobs: int = 1
) -> list[str]:
    backend = backend if context.device == "cuda" else "eager"
    words = ["--backend", backend, "--device", context.device, "--json", context.record(stage)]
    # A sanitizer counts what it found when the process ends.
    seconds = 0.75 * context.limit_s if context.device == "cuda" else 5
    words += ["--seconds", f"{seconds:.0f}", *arguments]
    if jobs > 1 and context.device == "cuda":
        return module(context.python, "bench.smoke_shares", "--jobs", jobs, *words)
    return module(context.python, "bench.sanitize_worker", *words)


def smoke(backend: str, expected_s: float) -> Stage:
    name = f"smoke-{backend}"

    def command(context: Context) -> list[str]:
        # What Triton is to compile takes one core minutes; nvcc has done so before.
        jobs = max(1, min(10, context.found["cores"] - 2)) if backend == "triton" else 1
        return _worker(context, name, backend, "--compare", jobs=jobs)

    title = f"steps of every kernel of {backend} against eager"
    return Stage(name, title, expected_s, 180, command, collect_record)


def sanitizer(tool: str, backend: str) -> Stage:
    name = f"{tool}-{backend}"

    def command(context: Context) -> list[str]:
        if context.device != "cuda":
            raise Skip("compute-sanitizer watches a GPU")
        path = context.found.get("compute_sanitizer")
        if not path:
            raise Skip("compute-sanitizer is neither on PATH nor in the CUDA toolkit")
        # torch probes the driver with calls that fail, which is none of our kernels' business.
        options = ["--tool", tool, "--error-exitcode", str(SANITIZER_EXIT), "--print-limit", "20"]
        options += ["--report-api-errors", "no"] if tool == "memcheck" else []
        options += ["--kernel-name-exclude", "kernel_substring=at6native"]  # nor are its kernels
        return [path, *options, *_worker(context, name, backend)]

    # Every tensor has an allocation of its own, so that going past its end is seen.
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    title = f"compute-sanitizer {tool} over every kernel of {backend}"
    return Stage(name, title, 70, 240, command, collect_sanitizer, variables)


def collect_sanitizer(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    """Tell an error of a kernel from a tool that can't run here."""
    details = read_json(context.record(stage.name)) or {}
    found = re.findall(r"(?:ERROR SUMMARY: (\d+) error|SUMMARY: (\d+) hazard)", outcome.output)
    errors = sum(int(a or b) for a, b in found)
    lines = [line for line in outcome.output.splitlines() if line.startswith("=========")]
    spoken = [line.strip("= ") for line in lines if line.strip("= ")]
    details = {**details, "errors": errors if found else None, "lines": spoken[:12]}
    if errors or outcome.returncode == SANITIZER_EXIT:
        return "failed", f"{stage.name.partition('-')[0]} found {errors} errors", details
    if outcome.status == "timeout":
        return "timeout", "", details
    if found and outcome.status == "passed":
        return "passed", "", details
    if found or "Traceback" in outcome.output:
        return "failed", last_line(outcome.output), details
    why = next((s for s in spoken if "COMPUTE-SANITIZER" not in s), last_line(outcome.output))
    return "skipped", f"compute-sanitizer does not run here: {why}", details


def large_command(context: Context) -> list[str]:
    if context.device != "cuda":
        raise Skip("needs tens of gigabytes of a GPU's memory")
    return module(context.python, "bench.large_worker", "--json", context.record("large"))
