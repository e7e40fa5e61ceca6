"""Which stages there are, in order, and which of them a call runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench import ROOT
from bench.gpu_check_engine import Outcome, Skip, module
from bench.gpu_check_pytest import summarise
from bench.gpu_check_stages import (
    Collected,
    Context,
    Stage,
    build_command,
    collect_build,
    collect_probe,
    collect_record,
    large_command,
    last_line,
    probe_command,
    sanitizer,
    smoke,
)
from bench.merging import merged, read

_TESTS = ROOT / "tests"
_EAGER = {"FUSED_OPTIM_TEST_BACKEND": "eager"}  # the others' parity has stages of its own
END_S = 15.0  # that a measuring process has left to end by itself


def tests(
    name: str, title: str, seconds: tuple[float, float], *arguments: str, **more: Any
) -> Stage:
    """Return a stage that runs pytest over files of tests/, or with other arguments."""
    dist = more.pop("dist", "load")
    rehearsed = more.pop("rehearsed", arguments)

    def command(context: Context) -> list[str]:
        packages = context.found.get("packages", {})
        if not packages.get("pytest"):
            raise Skip("pytest is not installed")
        options = ["-q", "-rN", "--tb=short", "-p", "no:cacheprovider"]
        options += arguments if context.device == "cuda" else rehearsed
        options += ["--timeout", "180"] if packages.get("pytest-timeout") else []
        if packages.get("pytest-xdist"):
            # Each worker has a context on the one GPU. A rehearsal leaves its cores to others.
            workers = max(1, min(12, context.found["cores"] - 2))
            on_gpu = context.device == "cuda"
            options += ["-n", str(workers), "--dist", dist] if on_gpu else ["-p", "no:xdist"]
        return module(context.python, "bench.gpu_check_pytest", context.record(name), *options)

    return Stage(name, title, *seconds, command, collect_tests, **more)


def collect_tests(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    details = summarise(context.record(stage.name))
    if details["failed"]:
        return "failed", f"{details['failed']} tests failed", details
    if outcome.returncode == 5:  # pytest's word for an empty selection
        return "skipped", "no test is selected", details
    reason = last_line(outcome.output) if outcome.status == "failed" else ""
    return outcome.status, reason, details


def parity(backend: str, expected_s: float) -> Stage:
    """Return the stage of the tests that every backend must pass, over one backend."""
    variables = {"FUSED_OPTIM_TEST_BACKEND": backend}
    name, title = f"tests-{backend}", f"the parity tests over {backend}"
    more = {"rehearsed": [str(_TESTS / "test_golden.py")], "variables": variables}
    return tests(name, title, (expected_s, 400), *parity_files(), **more)


def parity_files() -> list[str]:
    """Return the test files that run over every backend."""
    files = sorted(_TESTS.glob("test_*.py"))
    return [str(path) for path in files if "each_backend" in path.read_text()]


def bench(name: str, title: str, seconds: tuple[float, float], parts: str, extent: str) -> Stage:
    """Return a stage that runs some parts of the benchmarks."""

    def command(context: Context) -> list[str]:
        rehearsal = "--shapes smoke --only torch_compat.Adam --rounds 3 --warm-up 0"
        words = extent if context.device == "cuda" else rehearsal
        figures = _figures(context, name)
        return module(context.python, "bench", *figures, "--parts", parts, *words.split())

    return Stage(name, title, *seconds, command, collect_figures, full_only=extent == "--full")


def sweep_command(context: Context) -> list[str]:
    words = ["--quick"] if context.quick else []
    words += ["--most", "1e4", "--rounds", "3"] if context.device == "cpu" else []
    return module(context.python, "bench.sweep", *_figures(context, "sweep"), *words)


def _figures(context: Context, stage: str) -> list[object]:
    """Return where to measure, for how long, and what file to write."""
    seconds = max(1.0, context.limit_s - END_S)
    path = context.record(stage)
    return ["--device", context.device, "--json", path, "--time-limit", f"{seconds:.0f}"]


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
    reason = "" if outcome.status == "passed" else last_line(outcome.output)
    return outcome.status, reason, details


def report_command(context: Context) -> list[str]:
    if not context.results.exists():
        raise Skip("nothing was measured")
    if context.found.get("packages", {}).get("matplotlib", "unknown") is None:
        raise Skip("matplotlib is not installed; tools.report draws from results.json anywhere")
    curves = sorted((ROOT / "bench" / "results").glob("*/precision_curves.json"))
    words = ["--curves", curves[0]] if curves else []
    return module(context.python, "tools.report", context.results, context.out, *words)


def collect_report(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    return outcome.status, "" if outcome.status == "passed" else last_line(outcome.output), {}


STAGES: tuple[Stage, ...] = (
    Stage("environment", "what this machine is", 15, 90, probe_command, collect_probe),
    Stage("build", "the package, for this GPU alone", 45, 240, build_command, collect_build),
    smoke("cuda", 20),
    smoke("triton", 45),
    tests("tests-gpu", "the tests that need a GPU", (60, 300), "-m", "gpu and not long"),
    parity("cuda", 60),
    parity("triton", 100),
    bench("bench", "the five-minute benchmarks", (300, 420), "ratios,rows", "--quick"),
    sanitizer("memcheck", "cuda"),
    sanitizer("racecheck", "cuda"),
    sanitizer("memcheck", "triton"),
    sanitizer("racecheck", "triton"),
    Stage("large", "tensors beyond 2^31 elements", 40, 180, large_command, collect_record),
    bench("memory", "the memory of every optimizer", (110, 240), "memory", "--shapes gpt2-124M"),
    Stage("sweep", "cost by size and count", 90, 240, sweep_command, collect_figures),
    tests("tests-all", "the whole suite", (200, 540), dist="loadfile", variables=_EAGER),
    bench("bench-full", "all benchmarks", (900, 1800), "ratios,rows,memory", "--full"),
    Stage("report", "pictures and report", 25, 120, report_command, collect_report),
)


def choose(names: Sequence[str] | None, quick: bool) -> list[Stage]:
    """Return the stages to run, in their order.

    Args:
        names: of stages or of groups of them ("smoke" is both smoke tests); None: those of the
            form. The first two, which the others rely on, are always run.
        quick: whether the form is the quick one.

    Raises:
        ValueError: a name is none of a stage or group.
    """
    if names is None:
        return [stage for stage in STAGES if not (quick and stage.full_only)]
    named = {stage.name: [stage.name] for stage in STAGES}
    for stage in STAGES:
        group = stage.name.partition("-")[0]
        if group != stage.name and group not in named:
            named[group] = [s.name for s in STAGES if s.name.startswith(group + "-")]
    unknown = [name for name in names if name not in named]
    if unknown:
        raise ValueError(f"no stage is called {unknown[0]!r}; there are {', '.join(named)}")
    wanted = {*(s.name for s in STAGES[:2]), *(stage for name in names for stage in named[name])}
    return [stage for stage in STAGES if stage.name in wanted]
