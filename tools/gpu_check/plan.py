"""Which stages there are, in order, and which of them a call runs.

What fails early says most about what would fail later.
"""

from collections.abc import Sequence
from typing import Any

from bench import ROOT
from tools.gpu_check import stages
from tools.gpu_check.engine import Skip, module
from tools.gpu_check.stages import Context, Stage

_TESTS = ROOT / "tests"
_EAGER = {"FUSED_OPTIM_TEST_BACKEND": "eager"}  # the others' parity has stages of its own
_KERNELS = ("-m", "gpu and long", str(_TESTS / "backends/test_every_kernel.py"))
_LARGE = ("-m", "gpu and long", str(_TESTS / "backends/test_large_tensors.py"))
END_S = 15.0  # that a measuring process has left to end by itself


def probe_command(context: Context) -> list[str]:
    return module(context.python, "tools.gpu_check.probe", context.record("environment"))


def build_command(context: Context) -> list[str]:
    words = [context.site, context.record("build")]
    words += [context.found["gpu"]["architecture"]] if context.on_gpu else []
    return module(context.python, "tools.gpu_check.build", *words)


def _need(context: Context, *names: str, remedy: str = "") -> dict[str, str | None]:
    """Return the packages that there are, if these are among them."""
    packages = context.found.get("packages", {})
    for name in names:
        if packages.get(name, "unknown") is None:
            raise Skip(f"{name} is not installed{remedy}")
    return packages


def _pytest(
    context: Context, stage: str, arguments: Sequence[str], dist: str | None, seconds: float = 1e6
) -> list[str]:
    """Return pytest's command; ``dist`` says how tests are spread over processes, None for one."""
    packages = _need(context, "pytest")
    options = ["-q", "-rN", "--tb=short", "-p", "no:cacheprovider", *arguments]
    options += ["--timeout", "180"] if packages.get("pytest-timeout") else []
    if packages.get("pytest-xdist"):
        # Each worker has a context on the one GPU. A rehearsal leaves its cores to others.
        workers = max(1, min(12, context.found["cores"] - 2))
        several = ["-n", str(workers), "--dist", dist or ""]
        options += several if dist and context.on_gpu else ["-p", "no:xdist"]
    record = context.record(stage)
    return module(context.python, "tools.gpu_check.recorder", record, f"{seconds:.0f}", *options)


def tests(
    name: str,
    title: str,
    seconds: tuple[float, float],
    *arguments: str,
    dist: str | None = "load",
    rehearsed: Sequence[str] | None = None,
    **more: Any,
) -> Stage:
    """Return a stage that runs pytest with some arguments, in a rehearsal with others."""

    def command(context: Context) -> list[str]:
        chosen = arguments if context.on_gpu or rehearsed is None else rehearsed
        return _pytest(context, name, chosen, dist)

    return Stage(name, title, *seconds, command, stages.collect_tests, **more)


def smoke(backend: str, expected_s: float) -> Stage:
    # What Triton is to compile takes one core minutes; nvcc has done so before.
    dist = "loadgroup" if backend == "triton" else None
    title = f"steps of every kernel of {backend} against eager"
    variables = {"FUSED_OPTIM_BACKEND": backend}
    seconds = (expected_s, 180)
    return tests(f"smoke-{backend}", title, seconds, *_KERNELS, dist=dist, variables=variables)


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
        watched = _pytest(context, name, _KERNELS, None, 0.75 * context.limit_s)
        return [path, *options, "--print-limit", "20", *watched]

    # Every tensor has an allocation of its own, so that going past its end is seen.
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "FUSED_OPTIM_BACKEND": backend}
    variables["GPU_CHECK_WATCHES"] = "1"
    title = f"compute-sanitizer {tool} over every kernel of {backend}"
    return Stage(name, title, 70, 240, command, stages.collect_sanitizer, variables)


def parity(backend: str, expected_s: float) -> Stage:
    variables, files = {"FUSED_OPTIM_TEST_BACKEND": backend}, parity_files()
    more = {"rehearsed": [str(_TESTS / "optimizers/test_golden.py")], "variables": variables}
    title = f"the parity tests over {backend}"
    return tests(f"tests-{backend}", title, (expected_s, 400), *files, **more)


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
    _need(context, "pandas", "rich")
    limit = ("--time-limit", f"{max(1.0, context.limit_s - END_S):.0f}")
    where = ("--device", context.device, "--json", context.record(stage))
    return module(context.python, name, *where, *limit, *words)


def report_command(context: Context) -> list[str]:
    if not context.results.exists():
        raise Skip("nothing was measured")
    drawn = "; tools.report draws from results.json anywhere"
    _need(context, "matplotlib", "pandas", "seaborn", "jinja2", remedy=drawn)
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
    tests("large", "tensors beyond 2^31 elements", (40, 180), *_LARGE, dist=None),
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
