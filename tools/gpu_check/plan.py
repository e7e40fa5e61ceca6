"""Which stages there are, in order, and which of them a call runs.

What fails early says most about what would fail later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench import ROOT
from tools.gpu_check import stages
from tools.gpu_check.engine import Skip, module
from tools.gpu_check.stages import Context, Stage

_TESTS = ROOT / "tests"
_EAGER = {"FUSED_OPTIM_TEST_BACKEND": "eager"}  # the others' parity has stages of its own
_LARGE = ("-m", "gpu and long", str(_TESTS / "test_large_tensors.py"))
END_S = 15.0  # that a measuring process has left to end by itself


def probe_command(context: Context) -> list[str]:
    return module(context.python, "tools.gpu_check.probe", context.record("environment"))


def build_command(context: Context) -> list[str]:
    words = [context.site, context.record("build")]
    words += [context.found["gpu"]["architecture"]] if context.on_gpu else []
    return module(context.python, "tools.gpu_check.build", *words)


def _kernels(context: Context, stage: str, backend: str, *more: str, jobs: int = 1) -> list[str]:
    words = ["--backend", backend if context.on_gpu else "eager", "--device", context.device]
    # A sanitizer counts what it found when the process ends.
    seconds = 0.75 * context.limit_s if context.on_gpu else 5
    words += ["--json", str(context.record(stage)), "--seconds", f"{seconds:.0f}", *more]
    if jobs > 1:
        return module(context.python, "tools.gpu_check.shares", "--jobs", jobs, *words)
    return module(context.python, "tools.gpu_check.kernels", *words)


def smoke(backend: str, expected_s: float) -> Stage:
    name = f"smoke-{backend}"

    def command(context: Context) -> list[str]:
        # What Triton is to compile takes one core minutes; nvcc has done so before.
        several = backend == "triton" and context.on_gpu
        jobs = context.workers(10) if several else 1
        return _kernels(context, name, backend, "--compare", jobs=jobs)

    return Stage(
        name, f"steps of every kernel of {backend} against eager", expected_s, 180, command
    )


def sanitizer(tool: str, backend: str) -> Stage:
    name = f"{tool}-{backend}"

    def command(context: Context) -> list[str]:
        if not context.on_gpu:
            raise Skip("compute-sanitizer watches a GPU")
        path = context.found.get("compute_sanitizer")
        if not path:
            raise Skip("compute-sanitizer is neither on PATH nor in the CUDA toolkit")
        # torch probes the driver with calls that fail, which is none of our kernels' business.
        options = ["--tool", tool, "--error-exitcode", str(stages.SANITIZER_EXIT)]
        options += ["--report-api-errors", "no"] if tool == "memcheck" else []
        options += ["--kernel-name-exclude", "kernel_substring=at6native"]  # nor are its kernels
        return [path, *options, "--print-limit", "20", *_kernels(context, name, backend)]

    # Every tensor has an allocation of its own, so that going past its end is seen.
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    title = f"compute-sanitizer {tool} over every kernel of {backend}"
    return Stage(name, title, 70, 240, command, stages.collect_sanitizer, variables)


def tests(
    name: str, title: str, seconds: tuple[float, float], *arguments: str, **more: Any
) -> Stage:
    """Return a stage that runs pytest over files of tests/, or with other arguments.

    Further keywords are `Stage`'s and: ``dist``, how tests are spread over processes, None for one;
    ``rehearsed``, the arguments of a rehearsal, None for what takes a GPU.
    """
    dist = more.pop("dist", "load")
    rehearsed = more.pop("rehearsed", arguments)

    def command(context: Context) -> list[str]:
        packages = context.found.get("packages", {})
        if rehearsed is None and not context.on_gpu:
            raise Skip("needs tens of gigabytes of a GPU's memory")
        if not packages.get("pytest"):
            raise Skip("pytest is not installed")
        options = ["-q", "-rN", "--tb=short", "-p", "no:cacheprovider"]
        options += arguments if context.on_gpu else rehearsed
        options += ["--timeout", "180"] if packages.get("pytest-timeout") else []
        if packages.get("pytest-xdist"):
            # Each worker has a context on the one GPU. A rehearsal leaves its cores to others.
            several = dist and context.on_gpu
            spread = ["-n", str(context.workers(12)), "--dist", dist]
            options += spread if several else ["-p", "no:xdist"]
        return module(context.python, "tools.gpu_check.recorder", context.record(name), *options)

    return Stage(name, title, *seconds, command, stages.collect_tests, **more)


def parity(backend: str, expected_s: float) -> Stage:
    more = {"rehearsed": [str(_TESTS / "test_golden.py")]}
    more["variables"] = {"FUSED_OPTIM_TEST_BACKEND": backend}
    title = f"the parity tests over {backend}"
    return tests(f"tests-{backend}", title, (expected_s, 400), *parity_files(), **more)


def parity_files() -> list[str]:
    files = sorted(_TESTS.rglob("test_*.py"))
    return [str(path) for path in files if "each_backend" in path.read_text()]


def bench(name: str, title: str, seconds: tuple[float, float], parts: str, extent: str) -> Stage:
    def command(context: Context) -> list[str]:
        rehearsal = "--shapes smoke --only torch_compat.Adam --rounds 3 --warm-up 0"
        words = (extent if context.on_gpu else rehearsal).split()
        return _measuring(context, "bench", name, "--parts", parts, *words)

    full_only = extent == "--full"
    return Stage(name, title, *seconds, command, stages.collect_figures, full_only=full_only)


def sweep_command(context: Context) -> list[str]:
    words = ["--quick"] if context.quick else []
    words += [] if context.on_gpu else ["--most", "1e4", "--rounds", "3"]
    return _measuring(context, "bench.sweep", "sweep", *words)


def _measuring(context: Context, name: str, stage: str, *words: str) -> list[str]:
    limit = ("--time-limit", f"{max(1.0, context.limit_s - END_S):.0f}")
    where = ("--device", context.device, "--json", context.record(stage))
    return module(context.python, name, *where, *limit, *words)


def report_command(context: Context) -> list[str]:
    if not context.results.exists():
        raise Skip("nothing was measured")
    packages = context.found.get("packages", {})
    for name in ("matplotlib", "pandas", "seaborn", "jinja2"):
        if packages.get(name, "unknown") is None:
            raise Skip(f"{name} is not installed; tools.report draws from results.json anywhere")
    curves = sorted((ROOT / "bench" / "results").glob("*/precision_curves.json"))
    words = ["--curves", curves[0]] if curves else []
    return module(context.python, "tools.report", context.results, context.out, *words)


STAGES: tuple[Stage, ...] = (
    Stage("environment", "what this machine is", 15, 90, probe_command, stages.collect_probe),
    Stage("build", "the package, for this GPU alone", 45, 240, build_command, stages.collect_build),
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
    tests("large", "tensors beyond 2^31 elements", (40, 180), *_LARGE, dist=None, rehearsed=None),
    bench("memory", "the memory of every optimizer", (110, 240), "memory", "--shapes gpt2-124M"),
    Stage("sweep", "cost by size and count", 90, 240, sweep_command, stages.collect_figures),
    tests("tests-all", "the whole suite", (200, 540), dist="loadfile", variables=_EAGER),
    bench("bench-full", "all benchmarks", (900, 1800), "ratios,rows,memory", "--full"),
    Stage("report", "pictures and report", 25, 120, report_command),
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
