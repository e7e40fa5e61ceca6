"""Which stages there are, in order, and which of them a call runs.

A stage comes before those that its failure would explain, and figures come before suites.
"""

import os
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from bench import ROOT
from tools.gpu_check import stages
from tools.gpu_check.engine import Skip, module
from tools.gpu_check.stages import Context, Stage

_TESTS = ROOT / "tests"
_EAGER = {"FUSED_OPTIM_TEST_BACKEND": "eager"}  # parity on the other backends has its own stages
_KERNELS = ("-m", "gpu and long", str(_TESTS / "backends/test_every_kernel.py"))
_LARGE = ("-m", "gpu and long", str(_TESTS / "backends/test_large_tensors.py"))
END_S = 15.0  # a measuring process is told to end this long before it would be killed


def probe_command(context: Context) -> list[str]:
    return module(context.python, "tools.gpu_check.probe", context.record("environment"))


def build_command(context: Context) -> list[str]:
    """Build for this GPU alone; where the extension doesn't compile, `setup.py` leaves it out."""
    shutil.rmtree(context.site, ignore_errors=True)
    context.from_scratch = not list((ROOT / "build/cuda").glob("*/*.o"))
    request = {"FUSED_OPTIM_CUDA": "0"}
    if context.on_gpu:
        request = {"FUSED_OPTIM_CUDA_ARCHS": context.found["gpu"]["architecture"]}
        if nvcc := context.found.get("nvcc"):  # nvcc may not be on PATH
            request["CUDA_HOME"] = os.environ.get("CUDA_HOME", str(Path(nvcc).parents[1]))
    variables = [f"{name}={value}" for name, value in request.items()]
    # Temporary files lie beside the result, as several builds may run in one checkout.
    folders = ["--build-base", str(context.work / "setup"), "--build-lib", str(context.site)]
    return ["env", *variables, context.python, "setup.py", "-q", "build", *folders]


def _need(context: Context, *names: str, remedy: str = "") -> dict[str, str | None]:
    """Return the installed packages; raise Skip if one of ``names`` is missing."""
    packages = context.found.get("packages", {})
    for name in names:
        if packages.get(name, "unknown") is None:
            raise Skip(f"{name} is not installed{remedy}")
    return packages


def _pytest(context: Context, stage: str, arguments: Sequence[str], dist: str | None) -> list[str]:
    """Return pytest's command; ``dist`` is how xdist spreads the tests, or None for one process.

    pytest logs a line as each test ends, and writes the record when all tests have ended.
    """
    packages = _need(context, "pytest")
    options = ["-v", "-rN", "--tb=short", "-pno:cacheprovider", "-pno:benchmark", *arguments]
    options += [f"--junitxml={context.record(stage)}"]
    options += ["--timeout", "180"] if packages.get("pytest-timeout") else []
    if packages.get("pytest-xdist"):
        # Every worker takes a context on the one GPU. A rehearsal leaves the cores to others.
        workers = max(1, min(12, context.found["cores"] - 2))
        several = ["-n", str(workers), "--dist", dist or ""]
        options += several if dist and context.on_gpu else ["-p", "no:xdist"]
    return module(context.python, "pytest", *options)


def tests(
    name: str,
    title: str,
    seconds: tuple[float, float],
    *arguments: str,
    dist: str | None = "load",
    rehearsed: Sequence[str] | None = None,
    **variables: str,
) -> Stage:
    """Return a stage that runs pytest with some arguments, in a rehearsal with others."""

    def command(context: Context) -> list[str]:
        chosen = arguments if context.on_gpu or rehearsed is None else rehearsed
        return _pytest(context, name, chosen, dist)

    return Stage(name, title, *seconds, command, stages.collect_tests, variables)


def smoke(backend: str, expected_s: float) -> Stage:
    # Compiling Triton's kernels takes one core minutes; nvcc's were compiled by the build.
    dist = "loadgroup" if backend == "triton" else None
    title, seconds = f"steps of every kernel of {backend} against eager", (expected_s, 180)
    variables = {"FUSED_OPTIM_BACKEND": backend}
    return tests(f"smoke-{backend}", title, seconds, *_KERNELS, dist=dist, **variables)


def sanitizer(tool: str, backend: str) -> Stage:
    name = f"{tool}-{backend}"

    def command(context: Context) -> list[str]:
        if not context.on_gpu:
            raise Skip("compute-sanitizer watches a GPU")
        path = context.found.get("compute_sanitizer")
        if not path:
            raise Skip("compute-sanitizer is neither on PATH nor in the CUDA toolkit")
        # torch probes the driver with calls that fail. Neither these nor its kernels are reported.
        options = ["--tool", tool, "--error-exitcode", str(stages.SANITIZER_EXIT)]
        options += ["--report-api-errors", "no"] if tool == "memcheck" else []
        options += ["--kernel-name-exclude", "kernel_substring=at6native"]
        # The tool gives its verdict when the process that it watches ends.
        until = f"GPU_CHECK_WATCHES_UNTIL={time.time() + 0.75 * context.limit_s:.0f}"
        watched = _pytest(context, name, _KERNELS, None)
        return ["env", until, path, *options, "--print-limit", "20", *watched]

    # Without a cache every tensor is an allocation, and an access past its end is detected.
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "FUSED_OPTIM_BACKEND": backend}
    title = f"compute-sanitizer {tool} over every kernel of {backend}"
    return Stage(name, title, 70, 240, command, stages.collect_sanitizer, variables)


def parity(backend: str, expected_s: float) -> Stage:
    more = {"rehearsed": [str(_TESTS / "optimizers/test_golden.py")]}
    more["FUSED_OPTIM_TEST_BACKEND"] = backend
    title = f"the parity tests over {backend}"
    return tests(f"tests-{backend}", title, (expected_s, 400), *parity_files(), **more)


def parity_files() -> list[str]:
    files = sorted(_TESTS.rglob("test_*.py"))
    return [str(path) for path in files if "each_backend" in path.read_text()]


_FIGURES = "--parts ratios --quick --shapes llama-8b-2l,t5-base,one-16M,lora-r16,tiny-1000"
_FIGURES += " --only 'AdamW vs torch AdamW fused,Lion vs for,Adafactor stochastic vs,T5 stochastic"
_FIGURES += " vs,compat.Adafactor vs torch Adafactor'"
_REHEARSED = "--shapes smoke --only torch_compat.Adam --rounds 3 --warm-up 0"


def bench(
    name: str, title: str, seconds: tuple[float, float], words: str, rehearsed: str = _REHEARSED
) -> Stage:
    """Return a stage that measures, in a rehearsal with other words."""

    def command(context: Context) -> list[str]:
        _need(context, "rich")
        limit = ("--time-limit", f"{max(1.0, context.limit_s - END_S):.0f}")
        where = ("--device", context.device, "--json", context.record(name), *limit)
        some = words if context.on_gpu else f"{words} {rehearsed}".replace("--full", "")
        some += " --quick" if "--sweep" in words and context.quick else ""
        return module(context.python, "bench", *where, *shlex.split(some))

    full_only = "--full" in words
    return Stage(name, title, *seconds, command, stages.collect_figures, full_only=full_only)


def report_command(context: Context) -> list[str]:
    if not context.results.exists():
        raise Skip("nothing was measured")
    drawn = "; tools.report draws from results.json anywhere"
    _need(context, "matplotlib", "seaborn", remedy=drawn)
    return module(context.python, "tools.report", context.results, context.out)


STAGES: tuple[Stage, ...] = (
    Stage("environment", "what this machine is", 15, 90, probe_command, stages.collect_probe),
    Stage("build", "the package, for this GPU alone", 90, 240, build_command, stages.collect_build),
    smoke("cuda", 20),
    bench("figures", "what matters most, beside torch and transformers", (100, 180), _FIGURES),
    tests("tests-gpu", "the tests that need a GPU", (60, 300), "-m", "gpu and not long"),
    parity("cuda", 60),
    sanitizer("memcheck", "cuda"),
    sanitizer("racecheck", "cuda"),
    sanitizer("synccheck", "cuda"),
    smoke("triton", 45),
    parity("triton", 100),
    bench("bench", "the five-minute benchmarks", (300, 420), "--parts ratios,rows --quick"),
    sanitizer("memcheck", "triton"),
    sanitizer("racecheck", "triton"),
    tests("large", "tensors beyond 2^31 elements", (40, 180), *_LARGE, dist=None),
    bench("memory", "every optimizer's memory", (110, 240), "--parts memory --shapes gpt2-124M"),
    bench(
        "sweep",
        "cost by size and count",
        (90, 240),
        "--sweep --warm-up 0.05",
        "--most 1e4 --rounds 3",
    ),
    tests("tests-all", "the whole suite", (200, 540), dist="loadfile", **_EAGER),
    bench("bench-full", "all benchmarks", (900, 1800), "--full"),
    Stage("report", "pictures and report", 25, 120, report_command),
)


def choose(names: Sequence[str] | None, quick: bool) -> list[Stage]:
    """Return the stages to run, in their order.

    Args:
        names: of stages or of groups ("smoke" is both smoke tests); None for all of the form. The
            first two stages are always run, because the others rely on them.
        quick: whether the form is the quick one.

    Raises:
        ValueError: no stage and no group has one of the names.
    """
    if names is None:
        return [stage for stage in STAGES if not (quick and stage.full_only)]
    every = [stage.name for stage in STAGES]
    named = {name: [name] for name in every}
    for group in dict.fromkeys(name.partition("-")[0] for name in every):
        named.setdefault(group, [name for name in every if name.startswith(f"{group}-")])
    if unknown := [name for name in names if name not in named]:
        raise ValueError(f"no stage is called {unknown[0]!r}; there are {', '.join(named)}")
    wanted = {*every[:2], *(stage for name in names for stage in named[name])}
    return [stage for stage in STAGES if stage.name in wanted]
