"""The CUDA extension as it is built: what it links, where it imports, and when it is left out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import types
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fused_optim.backends import dispatch

ROOT = Path(__file__).resolve().parents[2]
EXTENSION = find_spec("fused_optim._C")
built = pytest.mark.skipif(EXTENSION is None, reason="the CUDA extension is not built")
SETUP = (sys.executable, str(ROOT / "setup.py"), "-q")


def run(*command: str | Path, cwd: Path, path: str | None = None, **env: str) -> tuple[int, str]:
    """Exit status and output of a command that sees no CUDA but what it is given.

    Builds leave the CPU extension out.
    """
    hidden = ("CUDA_HOME", "CUDA_PATH", "PYTHONPATH", "FUSED_OPTIM_CUDA", "TORCH_CUDA_ARCH_LIST")
    hidden += ("FUSED_OPTIM_CUDA_ARCHS",)
    clean = {name: value for name, value in os.environ.items() if name not in hidden}
    if path is not None:
        clean["PATH"] = path
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean | {"FUSED_OPTIM_CPU": "0"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


@built
@pytest.mark.skipif(not shutil.which("ldd"), reason="needs ldd")
def test_it_links_neither_torch_nor_the_cuda_runtime(tmp_path: Path) -> None:
    status, output = run("ldd", EXTENSION.origin, cwd=tmp_path)
    libraries = re.sub(r"\(0x[0-9a-f]+\)", "", output)
    assert status == 0
    for name in ("torch", "c10", "cudart", "libcuda", "python", "not found"):
        assert name not in libraries


@built
def test_it_imports_without_torch_and_without_a_driver(tmp_path: Path) -> None:
    code = f"""if True:
        import importlib.util as util, sys
        spec = util.spec_from_file_location("fused_optim._C", {EXTENSION.origin!r})
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert "torch" not in sys.modules
        print(module.CHUNK_SIZE, module.ARCHITECTURES)
    """
    status, output = run(sys.executable, "-I", "-c", code, cwd=tmp_path)
    assert status == 0, output
    assert output.startswith("8192 ")


@built
def test_a_device_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """Whatever the machine: device 99 does not exist."""
    code = "import fused_optim.backends.cuda as cuda; print(cuda.why_not(99))"
    status, output = run(sys.executable, "-c", code, cwd=tmp_path)
    assert status == 0, output
    assert "on cuda:99 (driver for CUDA " in output
    assert "cudaError" in output


@built
def test_it_is_small_enough_for_a_wheel(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "wheel.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(EXTENSION.origin)
    assert (tmp_path / "wheel.zip").stat().st_size < 5e6


def checkout(to: Path) -> Path:
    """A copy of what a build reads, with a compiler that records how it is called."""
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, to)
    (to / "README.md").write_text("")
    for name in ("csrc", "fused_optim", "triton_kernels"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("*.so"))
    return to


def recorded(package: Path) -> dict:
    """What a build wrote of the CUDA extension, for `python -m fused_optim` to say."""
    return json.loads((package / "_build.json").read_text())["extensions"]["CUDA"]


def fake_driver(folder: Path, *capabilities: str) -> None:
    """Put a nvidia-smi into a folder that shows GPUs of some compute capabilities, or none."""
    program = folder / "nvidia-smi"
    lines = "".join(f"echo {capability}\n" for capability in capabilities) or "exit 9\n"
    program.write_text(f"#!/bin/sh\n{lines}")
    program.chmod(0o755)


def fake_nvcc(folder: Path, compiles: bool) -> Path:
    """Put a compiler into a new folder that knows three architectures, and a driver without GPU."""
    folder.mkdir()
    fake_driver(folder)
    nvcc = folder / "nvcc"
    script = (
        "#!/bin/sh\n"
        + r"""
case "$*" in --list-gpu-arch) printf 'compute_75\ncompute_80\ncompute_90\n'; exit 0;; esac
echo "called: $*"
"""
    )
    # The depfile and the object that ninja waits for.
    script += (
        r"""while [ $# -gt 0 ]; do case "$1" in -o|-MF) : > "$2"; shift;; esac; shift; done"""
        if compiles
        else "exit 1"
    )
    nvcc.write_text(script + "\n")
    nvcc.chmod(0o755)
    return nvcc


def system_path(tmp_path: Path) -> str:
    """A PATH with a host compiler and no nvcc."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for tool in ("sh", "g++", "ninja", "as", "ld", "cc1plus", "env", "rm"):
        found = shutil.which(tool)
        if found:
            (folder / tool).symlink_to(found)
    return str(folder)


def test_no_compiler_is_no_error_unless_it_is_asked_for(tmp_path: Path) -> None:
    path = system_path(tmp_path)
    for request, fails in (("auto", False), ("0", False), ("1", True)):
        command = (*SETUP, "build_ext", "--build-lib", tmp_path / "out")
        status, output = run(*command, cwd=ROOT, path=path, FUSED_OPTIM_CUDA=request)
        assert (status != 0) == fails, output
        assert not (tmp_path / "out" / "fused_optim").exists()
        assert ("no CUDA compiler: nvcc is not on PATH" in output) == fails


@pytest.mark.parametrize("request_, fails", [("auto", False), ("1", True)])
def test_a_compiler_that_fails(tmp_path: Path, request_: str, fails: bool) -> None:
    source = tmp_path / "source"
    source.mkdir()
    checkout(source)
    nvcc = fake_nvcc(tmp_path / "bin", compiles=False)
    path = f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}"
    command = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    variables = {"FUSED_OPTIM_CUDA": request_, "CXX": str(nvcc), "FUSED_OPTIM_CUDA_ARCHS": "9.0"}
    status, output = run(*command, cwd=source, path=path, **variables)
    assert (status != 0) == fails, output
    assert "did not compile" in output
    assert not list((source / "fused_optim").glob("*.so"))
    if not fails:
        found = recorded(source / "fused_optim")
        assert (found["built"], found["cause"]) == (False, "compilation")
        assert "the compiler's message was printed" in found["reason"]


@pytest.mark.parametrize(
    ("variables", "flags"),
    [
        ({}, ["sm_80", "sm_90", "compute_75"]),
        ({"FUSED_OPTIM_CUDA_ARCHS": "all"}, ["sm_80", "sm_90", "compute_75"]),
        (
            {"FUSED_OPTIM_CUDA_ARCHS": "all", "FUSED_OPTIM_CUDA": "auto"},
            ["sm_80", "sm_90", "compute_75"],
        ),
        ({"FUSED_OPTIM_CUDA_ARCHS": "9.0"}, ["sm_90"]),
        ({"FUSED_OPTIM_CUDA_ARCHS": "9.0", "FUSED_OPTIM_CUDA": "auto"}, ["sm_90"]),
        ({"TORCH_CUDA_ARCH_LIST": "8.0;9.0+PTX"}, ["sm_80", "sm_90", "compute_90"]),
        ({"FUSED_OPTIM_CUDA_ARCHS": "8.0", "TORCH_CUDA_ARCH_LIST": "9.0"}, ["sm_80"]),
        ({"TORCH_CUDA_ARCH_LIST": "9.0a 9.0;8.0f+PTX "}, ["sm_90", "sm_80", "compute_80"]),
        ({"TORCH_CUDA_ARCH_LIST": "Hopper"}, ["sm_90", "compute_90"]),
        ({"TORCH_CUDA_ARCH_LIST": "Turing;Ampere+Tegra;Ampere"}, ["sm_75", "compute_75", "sm_80"]),
        ({"TORCH_CUDA_ARCH_LIST": "5.2;9.0;Blackwell;Maxwell"}, ["sm_90"]),
    ],
)
def test_architectures(tmp_path: Path, variables: dict[str, str], flags: list[str]) -> None:
    """Those that this compiler knows (it knows no sm_100), or those that are asked for."""
    source = tmp_path / "with space"
    source.mkdir()
    checkout(source)
    nvcc = fake_nvcc(tmp_path / "bin", compiles=True)
    path = f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}"
    command = (sys.executable, "setup.py", "build_ext", "--inplace")
    variables = {"FUSED_OPTIM_CUDA": "1", "CXX": str(nvcc), **variables}
    status, output = run(*command, cwd=source, path=path, **variables)
    assert status == 0, output
    (script,) = (source / "build" / "cuda").glob("*/build.ninja")
    command = next(line for line in script.read_text().splitlines() if "-fmad=false" in line)
    generated = [word for word in command.split() if word.startswith("-gencode")]
    assert [word.rpartition("code=")[2] for word in generated] == flags
    assert ("knows no architecture '52' of '5.2;9.0" in output) == ("5.2;" in str(variables))
    assert len(list((source / "fused_optim").glob("_C.*.so"))) == 1
    found = recorded(source / "fused_optim")
    assert found["built"] and found["for"] == flags
    assert ("52" in found["unknown"]) == ("5.2;" in str(variables))


@pytest.mark.skipif(not find_spec("ninja"), reason="needs the ninja that a build takes first")
@pytest.mark.parametrize("request_", ["auto", "1"])
def test_kernels_are_built_for_the_gpus_that_are_here(tmp_path: Path, request_: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    checkout(source)
    nvcc = fake_nvcc(tmp_path / "bin", compiles=True)
    fake_driver(nvcc.parent, "9.0", "8.0", "9.0")
    path = f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}"
    variables = {"FUSED_OPTIM_CUDA": request_, "CXX": str(nvcc)}
    command = (sys.executable, "setup.py", "build_ext", "--build-lib", "out")
    status, output = run(*command, cwd=source, path=path, **variables)
    assert status == 0, output
    assert "compiling its CUDA extension for sm_90, sm_80: about 3 min on 2 cores" in output
    (library,) = (source / "out" / "fused_optim").glob("*.so")
    assert recorded(library.parent)["for"] == ["sm_90", "sm_80"]
    with open(library) as loaded:
        again = run(*command, cwd=source, path=path, **variables)[1]
        assert os.fstat(loaded.fileno()).st_ino != library.stat().st_ino  # a process may run it
    assert "about 3 min" not in again


def test_without_a_gpu_none_are_built_unless_it_is_said_for_which(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    checkout(source)
    nvcc = fake_nvcc(tmp_path / "bin", compiles=True)
    path = f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}"
    command = (sys.executable, "setup.py", "build_ext", "--inplace")
    status, output = run(*command, cwd=source, path=path, CXX=str(nvcc))
    assert status == 0, output
    assert "without its CUDA extension: no GPU is here to build kernels for" in output
    assert "FUSED_OPTIM_CUDA_ARCHS=all" in output
    assert not list((source / "fused_optim").glob("_C.*.so"))
    found = recorded(source / "fused_optim")
    assert (found["built"], found["cause"]) == (False, "gpu")
    assert "no GPU is here to build kernels for" in found["reason"]


@pytest.mark.parametrize(
    ("variables", "cause"),
    [
        ({}, "compiler"),
        ({"FUSED_OPTIM_CUDA": "0"}, "unwanted"),
        ({"FUSED_OPTIM_CUDA_ARCHS": "1.0"}, "architectures"),
    ],
)
def test_a_build_leaves_word_of_what_it_left_out(
    tmp_path: Path, variables: dict[str, str], cause: str
) -> None:
    """Also where there is nothing to compile, and again once there is no reason any more."""
    source = tmp_path / "source"
    source.mkdir()
    checkout(source)
    path = system_path(tmp_path)
    nvcc = fake_nvcc(tmp_path / "bin", compiles=True)
    with_nvcc = f"{nvcc.parent}{os.pathsep}{path}"
    command = (sys.executable, "setup.py", "-q", "build", "--build-lib", "out")
    seen = path if cause == "compiler" else with_nvcc
    status, output = run(*command, cwd=source, path=seen, CXX=str(nvcc), **variables)
    assert status == 0, output
    found = recorded(source / "out" / "fused_optim")
    assert (found["built"], found["cause"]) == (False, cause)
    built = {"FUSED_OPTIM_CUDA_ARCHS": "9.0", "CXX": str(nvcc)}
    status, output = run(*command, cwd=source, path=with_nvcc, **built)
    assert status == 0, output
    assert recorded(source / "out" / "fused_optim") == {
        "built": True,
        "for": ["sm_90"],
        "unknown": [],
    }


def test_a_second_build_compiles_nothing(tmp_path: Path) -> None:
    """Even where PATH has another ninja, whose version would distrust the first one's log."""
    source = tmp_path / "source"
    source.mkdir()
    checkout(source)
    nvcc = fake_nvcc(tmp_path / "bin", compiles=True)
    other = nvcc.parent / "ninja"
    other.write_text("#!/bin/sh\nexit 1\n")
    command = (sys.executable, "setup.py", "build_ext", "--inplace")
    variables = {"FUSED_OPTIM_CUDA": "1", "CXX": str(nvcc)}
    calls = []
    for mode in (0o644, 0o755, 0o755):
        other.chmod(mode)
        path = f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}"
        status, output = run(*command, cwd=source, path=path, **variables)
        assert status == 0, output
        calls.append(output.count("called: "))
    assert calls[0] > 5 and calls[1:] == [0, 0]
    touched = source / "csrc/elementwise/adamw.cu"
    touched.write_text(touched.read_text() + "\n")
    status, output = run(*command, cwd=source, path=path, **variables)
    assert output.count("called: ") == 2, output  # one source, and the link


@pytest.mark.parametrize(("release", "compresses"), [("13.0", True), ("12.9", False)])
def test_kernels_are_compressed_where_every_driver_can_read_them(
    tmp_path: Path, release: str, compresses: bool
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    checkout(source)
    nvcc = fake_nvcc(tmp_path / "bin", compiles=True)
    version = f"case $1 in --version) echo 'release {release}, V{release}.1'; exit 0;; esac\n"
    nvcc.write_text(nvcc.read_text().replace("\n", "\n" + version, 1))
    path = f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}"
    command = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    variables = {"FUSED_OPTIM_CUDA": "1", "CXX": str(nvcc)}
    status, output = run(*command, cwd=source, path=path, **variables)
    assert status == 0, output
    (script,) = (source / "build" / "cuda").glob("*/build.ninja")
    assert ("--compress-mode=size" in script.read_text()) == compresses


@pytest.mark.parametrize("where", ["CUDA_HOME", "PyPI"])
def test_a_compiler_that_is_not_on_path(tmp_path: Path, where: str) -> None:
    """PyPI's packages share a folder nvidia/cu13 in site-packages, and bring a static runtime."""
    source = tmp_path / "source"
    source.mkdir()
    checkout(source)
    toolkit = tmp_path / "site" / "nvidia" / "cu13"
    (toolkit / "lib").mkdir(parents=True)
    (toolkit / "lib" / "libcudart_static.a").write_text("")
    nvcc = fake_nvcc(toolkit / "bin", compiles=True)
    variables = {"CUDA_HOME": str(toolkit)} if where == "CUDA_HOME" else {}
    if where == "PyPI":
        variables["PYTHONPATH"] = str(tmp_path / "site")
    path = system_path(tmp_path)
    command = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    variables |= {"FUSED_OPTIM_CUDA": "1", "CXX": str(nvcc)}
    status, output = run(*command, cwd=source, path=path, **variables)
    assert status == 0, output
    (script,) = (source / "build" / "cuda").glob("*/build.ninja")
    assert f"{nvcc} -shared -cudart static" in script.read_text()
    assert f"-L{toolkit / 'lib'}" in script.read_text()


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    checkout(source)
    nvcc = fake_nvcc(tmp_path / "bin", compiles=True)
    path = f"{nvcc.parent}{os.pathsep}{os.environ['PATH']}"
    command = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    asked = {"FUSED_OPTIM_CUDA": "1", "FUSED_OPTIM_CUDA_ARCHS": "1.0"}
    status, output = run(*command, cwd=source, path=path, **asked)
    assert status != 0
    assert "knows no architecture of '1.0'" in output


def test_a_device_without_a_kernel_image_falls_back_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reason = "cudaErrorNoKernelImageForDevice: ...; kernels are built for sm_90"
    fake = types.SimpleNamespace(adamw_=None, why_not=lambda index: reason if index == 1 else None)
    monkeypatch.delenv(dispatch.TEST_VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "load", lambda name: fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for cached in (dispatch._why_not, dispatch._why_not_on):
        cached.cache_clear()
    try:
        assert dispatch.choose("auto", "adamw_", torch.device("cuda", 0)) == "cuda"
        with pytest.warns(RuntimeWarning, match="sm_90"):
            assert dispatch.choose("auto", "adamw_", torch.device("cuda", 1)) != "cuda"
        assert dispatch.choose("auto", "adamw_", torch.device("cuda", 1)) != "cuda"
        with pytest.raises(RuntimeError, match="cudaErrorNoKernelImageForDevice"):
            dispatch.choose("cuda", "adamw_", torch.device("cuda", 1))
    finally:
        for cached in (dispatch._why_not, dispatch._why_not_on):
            cached.cache_clear()


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
def test_a_wheel_from_the_sdist_has_the_extension(tmp_path: Path) -> None:
    """For one architecture, with the real compiler and no torch within reach of the build."""
    shims, source = tmp_path / "shims", tmp_path / "source"
    shims.mkdir()
    source.mkdir()
    (shims / "torch.py").write_text("raise RuntimeError('the build imported torch')\n")
    checkout(source)
    shutil.copy(ROOT / "MANIFEST.in", source)
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(tmp_path)!r})"
    variables = {"PYTHONPATH": str(shims), "FUSED_OPTIM_CUDA": "1", "FUSED_OPTIM_CUDA_ARCHS": "9.0"}
    assert run(sys.executable, "-c", code, cwd=source, **variables)[0] == 0
    (sdist,) = tmp_path.glob("*.tar.gz")
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    command = (sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", tmp_path, sdist)
    status, output = run(*command, cwd=tmp_path, **variables)
    assert status == 0, output
    (wheel,) = tmp_path.glob("*.whl")
    assert not wheel.name.endswith("-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.startswith("fused_optim/_C.")]
