"""Which stages there are, in order, and which of them a call runs."""

from __future__ import annotations

from collections.abc import Sequence

from bench.gpu_check_engine import ROOT, Outcome, module
from bench.gpu_check_stages import (
    PARITY,
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
    tests,
)

_PARITY_FILES = tuple(str(ROOT / "tests" / f"test_{name}.py") for name in PARITY)


def parity(backend: str, expected_s: float) -> Stage:
    """Return the stage of the tests that every backend must pass, over one backend."""
    variables = {"FUSED_OPTIM_TEST_BACKEND": backend}
    title = f"the parity tests over {backend}"
    return tests(f"tests-{backend}", title, (expected_s, 400), *_PARITY_FILES, variables=variables)


def bench(name: str, expected_s: float, limit_s: float, *arguments: str, **more: bool) -> Stage:
    """Return a stage that runs the benchmarks into the results file."""

    def command(context: Context) -> list[str]:
        words = ["--device", context.device, "--json", str(context.results), *arguments]
        return module(context.python, "bench", *words)

    title = "benchmarks, all of them" if more else "benchmarks, the five-minute form"
    return Stage(name, title, expected_s, limit_s, command, collect_figures, **more)


def sweep_command(context: Context) -> list[str]:
    words = ["--device", context.device, "--json", context.results]
    return module(context.python, "bench.sweep", *words, *(["--quick"] * context.quick))


def report_command(context: Context) -> list[str]:
    return module(context.python, "bench.report_html", context.results, "--out", context.out)


def collect_figures(context: Context, stage: Stage, outcome: Outcome) -> Collected:
    """The figures are in the results file, where the summary finds them."""
    reason = "" if outcome.status == "passed" else last_line(outcome.output)
    return outcome.status, reason, {}


STAGES: tuple[Stage, ...] = (
    Stage("environment", "what this machine is", 15, 90, probe_command, collect_probe),
    Stage("build", "the package, for this GPU alone", 45, 240, build_command, collect_build),
    smoke("cuda", 20),
    smoke("triton", 45),
    tests("tests-gpu", "the tests that need a GPU", (60, 300), "-m", "gpu and not long"),
    parity("cuda", 60),
    parity("triton", 100),
    bench("bench", 300, 420, "--quick"),
    sanitizer("memcheck", "cuda"),
    sanitizer("racecheck", "cuda"),
    sanitizer("memcheck", "triton"),
    sanitizer("racecheck", "triton"),
    Stage("large", "tensors beyond 2^31 elements", 40, 180, large_command, collect_record),
    Stage("sweep", "cost by size and count", 90, 240, sweep_command, collect_figures),
    tests("tests-all", "the whole suite", (200, 540)),
    bench("bench-full", 900, 1800, full_only=True),
    Stage("report", "pictures and report", 25, 120, report_command, collect_figures),
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
