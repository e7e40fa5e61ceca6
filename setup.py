"""Builds fused_optim, and its extensions where that is possible; metadata is in pyproject.toml.

`FUSED_OPTIM_CUDA` says what to do about the CUDA extension: `0` leaves it out, `1` insists on it,
`auto` (the default) builds it where there is a CUDA compiler: on PATH, in CUDA_HOME, or from the
PyPI packages nvidia-cuda-nvcc, -runtime, -crt, -cccl and nvidia-nvvm. `FUSED_OPTIM_CUDA_ARCHS` (or
`TORCH_CUDA_ARCH_LIST`) lists architectures as `9.0;10.0+PTX`. `FUSED_OPTIM_CPU` says the same of
the CPU extension, which takes a C++ compiler: `CXX`, g++ or clang++. Neither torch nor a GPU is
needed.
"""

import importlib.util
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
KERNELS = runpy.run_path(str(ROOT / "fused_optim/ops.py"))["KERNELS"]
SOURCES = ("csrc/bindings.cpp", *(f"csrc/{name}.cu" for name in KERNELS))
DEFAULT_ARCHITECTURES = "8.0;9.0;10.0;12.0;7.5+PTX"
# What torch's own extensions take in TORCH_CUDA_ARCH_LIST for versions.
FAMILIES = {
    "Volta": "7.0+PTX",
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ampere+Tegra": "8.7",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
    "Blackwell+Tegra": "11.0",
}
COMMON = ("-O3", "-std=c++17", "-Icsrc")
# AdamW is the same on every backend to the bit: no operation may be contracted into another.
NVCC_FLAGS = (*COMMON, "-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden")
HOST_FLAGS = (*COMMON, "-fPIC", "-fvisibility=hidden")
CPU_SOURCES = ("bindings", "cpu/adafactor_ops", "cpu/chosen", "cpu/ops", "cpu/threads")
# Without the last two a compiler doesn't vectorise square roots and conditions.
CPU_FLAGS = ("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-unknown-pragmas")
# The names are those of csrc/cpu/chosen.cpp. Compilers would keep to vectors of 256 bits in v4.
X86_KERNELS = {
    "v2": ("x86-64-v2", "-march=x86-64-v2"),
    "v3": ("x86-64-v3", "-march=x86-64-v3"),
    "v4": ("x86-64-v4", "-march=x86-64-v4 -mprefer-vector-width=512"),
}


BUILT: dict[str, dict] = {}
"""What becomes of each extension, by its use. `python -m fused_optim` says it, as pip does not."""


class NotPossible(Exception):
    """The extension can't be built here; the message says why.

    The cause is a word for `fused_optim/backends/installation.py`, which knows what to do about it.
    """

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


def leave_out(what: str, reason: object, cause: str) -> None:
    """Note that an extension is not built, and why."""
    BUILT[what] = {"built": False, "reason": str(reason), "cause": cause}


def write_record(folder: Path) -> None:
    """Write what was built, and what not, into a folder of the package.

    Nothing in it differs between two builds of the same on the same machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {"python": sys.implementation.cache_tag, "platform": sysconfig.get_platform()}
    text = json.dumps({**record, "extensions": BUILT}, indent=2, sort_keys=True)
    (folder / "_build.json").write_text(text + "\n")


def request_of(variable: str) -> str:
    """Return what FUSED_OPTIM_CUDA or FUSED_OPTIM_CPU asks for: "0", "1" or "auto"."""
    request = os.environ.get(variable) or "auto"
    if request not in ("auto", "0", "1"):
        raise SystemExit(f"{variable}={request}: expected 0, 1 or auto")
    return request


def find_cxx() -> str:
    """Return the C++ compiler's command: CXX, g++ or clang++.

    Raises:
        NotPossible: there is none.
    """
    asked = os.environ.get("CXX")
    for command in [asked] if asked else ["g++", "clang++"]:
        if shutil.which(shlex.split(command)[0]):
            return command
    raise NotPossible(
        f"no C++ compiler: {asked or 'neither g++ nor clang++'} is on PATH", "compiler"
    )


def pypi_toolkits() -> list[Path]:
    """Return the folders in which NVIDIA's PyPI packages put a toolkit, build environment first."""
    places = dict.fromkeys([*sys.path, sysconfig.get_path("purelib")])
    return [cuda for place in places for cuda in sorted(Path(place or ".").glob("nvidia/cu[0-9]*"))]


def find_nvcc() -> Path:
    """Return the CUDA compiler: on PATH, in CUDA_HOME, or from PyPI.

    Raises:
        NotPossible: there is none.
    """
    on_path = shutil.which("nvcc")
    if on_path:
        return Path(on_path)
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), *pypi_toolkits()]
    for home in filter(None, homes):
        nvcc = Path(home) / "bin" / "nvcc"
        if nvcc.is_file():
            return nvcc
    raise NotPossible(
        "no CUDA compiler: nvcc is not on PATH, in CUDA_HOME, or installed from PyPI", "compiler"
    )


def library_flags(nvcc: Path) -> list[str]:
    """Return what the link needs to find the static runtime: PyPI's nvcc looks in lib64 only."""
    lib = nvcc.resolve().parents[1] / "lib"
    return [f"-L{lib}"] if (lib / "libcudart_static.a").is_file() else []


def compression_flags(nvcc: Path) -> list[str]:
    """Return what makes kernels half as large, where no driver that may load them minds.

    Drivers before CUDA 12.4 can't read the format, and the runtime of CUDA 13 needs newer ones.
    """
    printed = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)", printed)
    return ["--compress-mode=size"] if release and int(release[1]) >= 13 else []


def supported_architectures(nvcc: Path) -> set[str]:
    """Return what the compiler knows, as "90" and the like."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    if listed.returncode != 0:
        raise NotPossible(f"{nvcc} does not run: {listed.stderr.strip()}", "compiler")
    return set(re.findall(r"compute_(\w+)", listed.stdout))


def versions_in(architectures: str) -> list[tuple[str, bool]]:
    """Return a list of architectures as numbers such as "90", and whether PTX is wanted of each.

    `9.0a` and `10.0f` stand for instructions that no kernel here has: they are 9.0 and 10.0.
    """
    items = [item for item in re.split(r"[;,\s]+", architectures) if item]
    versions = ";".join(FAMILIES.get(item, item) for item in items).split(";")
    parts = [version.partition("+") for version in versions]
    return [(re.sub(r"(?<=\d)[af]$", "", v).replace(".", ""), bool(ptx)) for v, ptx, _ in parts]


def gpus_here() -> str:
    """Return the architectures of this machine's GPUs, as "9.0;12.0"; of none, an empty string."""
    driver = shutil.which("nvidia-smi")
    if driver is None:
        return ""
    command = [driver, "--query-gpu=compute_cap", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True)
    found = re.findall(r"^ *(\d+\.\d+) *$", listed.stdout, re.MULTILINE)
    return ";".join(dict.fromkeys(found)) if listed.returncode == 0 else ""


def wanted_architectures() -> tuple[str, bool]:
    """Return the architectures to build for, and whether somebody named them.

    Those of the environment, else those of the GPUs that are here, as a machine's own kernels take
    a fifth of the time of all.

    Raises:
        NotPossible: nothing says which.
    """
    asked = os.environ.get("FUSED_OPTIM_CUDA_ARCHS") or os.environ.get("TORCH_CUDA_ARCH_LIST")
    if asked and asked.strip().lower() != "all":
        return asked, True
    if asked or request_of("FUSED_OPTIM_CUDA") == "1":
        return (not asked and gpus_here()) or DEFAULT_ARCHITECTURES, False
    here = gpus_here()
    if not here:
        raise NotPossible(
            "no GPU is here to build kernels for; FUSED_OPTIM_CUDA_ARCHS=9.0 builds them for "
            "another machine's, FUSED_OPTIM_CUDA_ARCHS=all for every one",
            "gpu",
        )
    return here, True


def architecture_flags(nvcc: Path) -> tuple[list[str], str]:
    """Return the flags that select architectures, and their names for error messages.

    Those that the compiler does not know are left out, with a warning if they were asked for.

    Raises:
        NotPossible: the compiler knows none of them.
    """
    architectures, asked = wanted_architectures()
    known, codes, unknown = supported_architectures(nvcc), {}, []
    for number, ptx in versions_in(architectures):
        if number in known:
            made = ["sm"] * bool(asked or not ptx) + ["compute"] * ptx
            codes |= {f"{kind}_{number}": number for kind in made}
        elif asked:
            unknown.append(number)
            print(
                f"fused_optim: {nvcc} knows no architecture {number!r} of {architectures!r}, so no "
                f"kernels are built for it; it has {sorted(known)}",
                file=sys.stderr,
            )
    if not codes:
        raise NotPossible(f"{nvcc} knows no architecture of {architectures!r}", "architectures")
    BUILT["CUDA"] = {"for": list(codes), "unknown": unknown}
    flags = [f"-gencode=arch=compute_{number},code={code}" for code, number in codes.items()]
    return flags, " ".join(codes)


def quoted(*words: object) -> str:
    """Return a command line."""
    return " ".join(shlex.quote(str(word)) for word in words)


def escaped(path: object) -> str:
    """Return a path as ninja reads it."""
    return re.sub(r"([ :$])", r"$\1", str(path))


def rule(name: str, command: str) -> list[str]:
    """Return a ninja rule that compiles, and notes the headers that were read."""
    command = f"{command} -MD -MF $out.d -c $in -o $out"
    return [f"rule {name}", f"  command = {command}", "  depfile = $out.d", "  deps = gcc"]


def bindings_flags() -> tuple[str, ...]:
    """Return what compiles csrc/bindings.cpp beside the flags of all host code."""
    import pybind11

    return (f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}")


def cuda_script(output: Path) -> str:
    """Return the build of `_C` as ninja reads it; paths are relative to the folder of this file."""
    nvcc = find_nvcc()
    architectures, names = architecture_flags(nvcc)
    host = os.environ.get("CXX") or "g++"
    bindings = (*HOST_FLAGS, *bindings_flags(), f'-DFUSED_OPTIM_ARCHITECTURES="{names}"')
    ccbin = ("-ccbin", host) if os.environ.get("CXX") else ()
    link = ("-shared", "-cudart", "static", *ccbin, *library_flags(nvcc))
    lines = [
        f"builddir = {escaped(output.parent)}",  # of ninja's own files
        *rule("nvcc", quoted(nvcc, *NVCC_FLAGS, *compression_flags(nvcc), *ccbin, *architectures)),
        *rule("host", quoted(*host.split(), *bindings)),
        "rule link",
        f"  command = {quoted(nvcc, *link)} -o $out $in -Xlinker --exclude-libs,ALL -Xlinker -s",
    ]
    objects = []
    for source in SOURCES:
        made = escaped(output.parent / f"{Path(source).name}.o")
        lines.append(f"build {made}: {'nvcc' if source.endswith('.cu') else 'host'} {source}")
        objects.append(made)
    lines.append(f"build {escaped(output)}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def cpu_script(output: Path) -> str:
    """Return the build of `_cpu` as ninja reads it: its kernels once for each instruction set."""
    compiler = shlex.split(find_cxx())
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    sets = X86_KERNELS if x86 else {"base": (platform.machine(), "")}
    common = quoted(*compiler, *HOST_FLAGS, *CPU_FLAGS, "-DFUSED_OPTIM_CPU=1")
    strip = () if sys.platform == "darwin" else ("-Wl,-s",)
    undefined = ("-undefined", "dynamic_lookup") if sys.platform == "darwin" else ()
    BUILT["CPU"] = {"for": [isa for isa, _ in sets.values()]}
    lines = [
        f"builddir = {escaped(output.parent)}",
        *rule("host", f"{common} {quoted(*bindings_flags())}"),
        "rule link",
        f"  command = {quoted(*compiler, '-shared', *undefined, *strip)} -o $out $in"
        + ("" if sys.platform == "darwin" else " -ldl"),
    ]
    objects = []
    for name in CPU_SOURCES:
        made = escaped(output.parent / f"{Path(name).name}.o")
        lines.append(f"build {made}: host csrc/{name}.cpp")
        objects.append(made)
    for name, (isa, flags) in sets.items():
        defines = (f"-DFUSED_OPTIM_NAMESPACE=fused_optim_{name}", f'-DFUSED_OPTIM_ISA="{isa}"')
        lines += rule(f"kernels_{name}", f"{common} {flags} {quoted(*defines)}")
        made = escaped(output.parent / f"kernels_{name}.o")
        lines.append(f"build {made}: kernels_{name} csrc/cpu/kernels.cpp")
        objects.append(made)
    lines.append(f"build {escaped(output)}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def run_ninja(folder: Path) -> None:
    """Build what the ninja file in ``folder`` describes.

    Raises:
        NotPossible: it failed; the compiler has said why.
    """
    # Python's own first, as pip's build has it: another version starts over, not trusting the log.
    own = importlib.util.find_spec("ninja") is not None
    on_path = None if own else shutil.which("ninja")
    command = [on_path] if on_path else [sys.executable, "-m", "ninja"]
    if subprocess.run([*command, "-f", folder / "build.ninja"], cwd=ROOT).returncode != 0:
        raise NotPossible("it did not compile; the compiler's message is above", "compilation")


def say_how_long(what: str, script: str) -> None:
    """Print what is about to be compiled, and for how long."""
    codes = re.findall(r",code=(\w+)", script)
    of, minutes = f" for {', '.join(codes)}" if codes else "", max(1, round(1.5 * len(codes)))
    print(
        f"fused_optim: compiling its {what} extension{of}: about {minutes} min on 2 cores",
        file=sys.stderr,
        flush=True,
    )


EXTENSIONS = {
    "fused_optim._C": ("CUDA", SOURCES, cuda_script, find_nvcc, ("linux",)),
    "fused_optim._cpu": (
        "CPU",
        tuple(f"csrc/{name}.cpp" for name in (*CPU_SOURCES, "cpu/kernels")),
        cpu_script,
        find_cxx,
        ("linux", "darwin"),
    ),
}
"""By an extension's name: its use, its sources, its build, what finds the compiler, platforms."""


class BuildModules(build_py):
    """Copies the modules, and writes beside them what no compiler is asked for."""

    def run(self) -> None:
        """Copy, and write the record; `BuildKernels` writes it again once there is more to say."""
        super().run()
        write_record((ROOT if self.editable_mode else Path(self.build_lib)) / "fused_optim")


class BuildKernels(build_ext):
    """Compiles csrc/ through ninja: for GPUs with nvcc, for CPUs with a C++ compiler."""

    def run(self) -> None:
        """Build, and write what became of it beside the modules."""
        super().run()
        if self.inplace or self.extensions:
            write_record((ROOT if self.inplace else Path(self.build_lib)) / "fused_optim")

    def build_extension(self, ext: Extension) -> None:
        """Build into build/, where the next build finds what did not change, and copy."""
        what, _, script_of, _, _ = EXTENSIONS[ext.name]
        tag = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
        folder = ROOT / "build" / what.lower() / tag
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            output = folder / target.name
            script = script_of(output.relative_to(ROOT))
            if (
                not (folder / "build.ninja").exists()
                or (folder / "build.ninja").read_text() != script
            ):
                (folder / "build.ninja").write_text(script)
                say_how_long(what, script)
            run_ninja(folder)
        except NotPossible as reason:
            if request_of(f"FUSED_OPTIM_{what}") == "1":
                raise SystemExit(
                    f"FUSED_OPTIM_{what}=1 requires the {what} extension: {reason}"
                ) from None
            print(f"fused_optim is built without its {what} extension: {reason}", file=sys.stderr)
            leave_out(what, str(reason).replace(" is above", " was printed"), reason.cause)
            for stale in (target, ROOT / "fused_optim" / target.name):
                stale.unlink(missing_ok=True)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        # A process may run the last build: its file is replaced, and not written over.
        shutil.copyfile(output, target.with_suffix(".new"))
        os.replace(target.with_suffix(".new"), target)
        BUILT[what]["built"] = True

    def get_outputs(self) -> list[str]:
        """Return what was built, which may be nothing."""
        return [path for path in super().get_outputs() if os.path.exists(path)]


def extensions() -> list[Extension]:
    """Return the extensions, but for those that are unwanted or can't be built."""
    found = []
    for name, (what, sources, _, find_compiler, platforms) in EXTENSIONS.items():
        request = request_of(f"FUSED_OPTIM_{what}")
        if request == "0":
            leave_out(what, f"FUSED_OPTIM_{what}=0 was set", "unwanted")
            continue
        try:
            if sys.platform not in platforms:
                raise NotPossible(f"it is built on {' and '.join(platforms)} only", "platform")
            find_compiler()
        except NotPossible as reason:
            if request == "1":
                raise SystemExit(
                    f"FUSED_OPTIM_{what}=1 requires the {what} extension: {reason}"
                ) from None
            leave_out(what, reason, reason.cause)
            continue
        found.append(Extension(name, sources=list(sources), optional=True))
    return found


setup(
    # Installed at top level, triton_kernels/ would shadow another project's package of that name.
    packages=[
        *find_packages(include=["fused_optim", "fused_optim.*"]),
        "fused_optim.triton_kernels",
    ],
    package_dir={"fused_optim.triton_kernels": "triton_kernels"},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildKernels, "build_py": BuildModules},
)
