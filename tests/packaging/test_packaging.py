"""The package as its users get it: what is built, what is in it, and what an import does."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

# Asked for "pip", the finder that setuptools installs stops replacing distutils in this process.
if not all(map(PathFinder.find_spec, ("pip", "setuptools", "wheel"))):
    pytest.skip("needs pip, setuptools and wheel", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("bench", "csrc", "docs", "examples", "fused_optim", "tests", "tools", "triton_kernels")
SOURCE_SUFFIXES = {".cpp", ".cu", ".cuh", ".h", ".jinja", ".json", ".md", ".mplstyle", ".py"}
HIDDEN = ("PYTHONPATH", "FUSED_OPTIM_CUDA", "TRITON_INTERPRET", "MAKEFLAGS", "MAKELEVEL", "VENV")
NO_EXTENSIONS = {"FUSED_OPTIM_CUDA": "0", "FUSED_OPTIM_CPU": "0"}
OFFLINE = ("--no-deps", "--no-index", "--no-build-isolation")


def run(*command: str | Path, cwd: Path, fails: bool = False, **env: str) -> str:
    """The output of a command, run with nothing of this test session in its environment.

    Builds leave the extensions out, which test_cuda_build.py and test_cpu_build.py build.
    """
    clean = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean | NO_EXTENSIONS | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, so that no build sees, or leaves, anything in it."""
    copy = tmp_path_factory.mktemp("source")
    built = shutil.ignore_patterns(
        *("__pycache__", "*.so", "_build.json", "*.egg-info", ".*_cache", ".benchmarks")
    )
    for entry in ROOT.iterdir():
        if entry.is_file():
            shutil.copy(entry, copy)
        elif entry.name in SHIPPED:
            shutil.copytree(entry, copy / entry.name, ignore=built)
    return copy


@pytest.fixture(scope="session")
def no_torch(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH under which importing torch or triton fails loudly."""
    shims = tmp_path_factory.mktemp("shims")
    for name in ("torch", "triton"):
        (shims / f"{name}.py").write_text(f"raise RuntimeError('the build imported {name}')\n")
    return str(shims)


@pytest.fixture(scope="session")
def sdist(source: Path, no_torch: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    run(sys.executable, "-c", code, cwd=source, PYTHONPATH=no_torch)
    (archive,) = out.iterdir()
    return archive


@pytest.fixture(scope="session")
def wheel(sdist: Path, no_torch: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, so that whatever the sdist lacks is missed here."""
    out = tmp_path_factory.mktemp("wheel")
    command = (sys.executable, "-m", "pip", "wheel", *OFFLINE, "--wheel-dir", out, sdist)
    run(*command, cwd=out, PYTHONPATH=no_torch)
    (archive,) = out.iterdir()
    return archive


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def fresh_environment(where: Path) -> Path:
    """The Python of a new virtual environment, which sees torch and the build tools."""
    run(sys.executable, "-m", "venv", "--without-pip", where, cwd=where.parent)
    python = where / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", code, cwd=where).strip())
    outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    outer |= {str(Path(find_spec(name).origin).parents[1]) for name in ("torch", "setuptools")}
    # Folders named by a .pth file join the path, but .pth files inside them are not read: an
    # editable install of this package out there stays out of sight.
    (site / "outer.pth").write_text("\n".join(sorted(outer)))
    return python


def install(python: Path, *what: str | Path) -> None:
    command = (sys.executable, "-m", "pip", "--python", python, "install", *OFFLINE)
    run(*command, "--ignore-installed", *what, cwd=python.parent)


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    python = fresh_environment(tmp_path_factory.mktemp("installed") / "env")
    install(python, wheel)
    return python


def locate(*python: str | Path, cwd: Path, **env: str) -> dict[str, Path]:
    """Where the package, its Triton half and any stray top-level triton_kernels come from."""
    code = """if True:
        import importlib.util as util
        import fused_optim, fused_optim.triton_kernels
        stray = util.find_spec("triton_kernels")
        print("package", fused_optim.__file__, sep="=")
        print("triton", fused_optim.triton_kernels.__file__, sep="=")
        print("stray", stray and stray.origin, sep="=")
    """
    lines = run(*python, "-c", code, cwd=cwd, **env).splitlines()
    return {key: Path(value) for key, _, value in (line.partition("=") for line in lines)}


def test_sdist_has_every_source_file(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        shipped = {str(PurePosixPath(*Path(name).parts[1:])) for name in archive.getnames()}
    expected = {"Makefile", "MANIFEST.in", "constraints.txt", "pyproject.toml", "setup.py"}
    expected |= {"CHANGELOG.md", "CITATION.cff", "SECURITY.md"}
    for folder in SHIPPED:
        files = (path for path in (ROOT / folder).rglob("*") if path.suffix in SOURCE_SUFFIXES)
        expected |= {path.relative_to(ROOT).as_posix() for path in files}
    expected.discard("fused_optim/_build.json")  # what a build of this checkout left
    assert expected - shipped == set()
    assert not [
        name for name in shipped if "__pycache__" in name or name.endswith((".so", "_build.json"))
    ]


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    info = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    assert {PurePosixPath(name).parts[0] for name in names} == {"fused_optim", info}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fused_optim").rglob("*.py")}
    triton = (ROOT / "triton_kernels").rglob("*.py")
    modules |= {f"fused_optim/{path.relative_to(ROOT).as_posix()}" for path in triton}
    assert {name for name in names if name.endswith(".py")} == modules
    assert "fused_optim/py.typed" in names
    with zipfile.ZipFile(wheel) as archive:  # `python -m fused_optim` says what pip does not
        record = json.loads(archive.read("fused_optim/_build.json"))["extensions"]
    assert {what: found["cause"] for what, found in record.items()} == {
        "CUDA": "unwanted",
        "CPU": "unwanted",
    }


def test_everything_that_is_shipped_carries_the_licence(
    wheel: Path, sdist: Path, metadata: Message
) -> None:
    licence = (ROOT / "LICENSE").read_bytes()
    assert licence.split(b"\n")[0].strip() == b"Apache License"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["License-Expression"] == "Apache-2.0"
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/LICENSE")]
        assert archive.read(name) == licence
    with tarfile.open(sdist) as archive:
        [name] = [name for name in archive.getnames() if name.count("/") == 1 and "LICENSE" in name]
        assert archive.extractfile(name).read() == licence


def test_pages_beside_the_package_name_its_version() -> None:
    version = runpy.run_path(ROOT / "fused_optim/_version.py")["__version__"]
    (latest, *_) = re.findall(r"^## \[(.*?)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    citation = (ROOT / "CITATION.cff").read_text()
    assert latest[0] == version
    assert f"version: {version}\ndate-released: {latest[1]}\n" in citation


def test_metadata_requires_torch_by_a_floor_only(metadata: Message) -> None:
    assert metadata["Version"] == runpy.run_path(ROOT / "fused_optim/_version.py")["__version__"]

    def required(**environment: str) -> list[Requirement]:
        every = map(Requirement, metadata.get_all("Requires-Dist"))
        return [each for each in every if not each.marker or each.marker.evaluate(environment)]

    (needed,) = required(extra="")
    assert needed.name == "torch"
    assert [specifier.operator for specifier in needed.specifier] == [">="]
    for platform, names in (("linux", ["torch", "triton"]), ("darwin", ["torch"])):
        assert [each.name for each in required(extra="triton", sys_platform=platform)] == names


def test_every_development_requirement_is_pinned(metadata: Message) -> None:
    """An unpinned torch, above all, would bring gigabytes that nobody asked for."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    needed = {Requirement(text).name for text in metadata.get_all("Requires-Dist")}
    assert needed - {pin.name for pin in pins} - {"fused_optim", "fused-optim"} == set()
    assert [pin.name for pin in pins if not str(pin.specifier).startswith("==")] == ["triton"]


def test_the_shims_do_refuse_torch(no_torch: str, tmp_path: Path) -> None:
    """Without this, builds that import torch would pass for builds that do not."""
    command = (sys.executable, "-c", "import torch")
    output = run(*command, cwd=tmp_path, fails=True, PYTHONPATH=no_torch)
    assert "the build imported torch" in output


@pytest.mark.parametrize("choice", ["", "0", "auto"])
def test_cuda_choice_that_can_be_met(source: Path, choice: str) -> None:
    run(sys.executable, "setup.py", "--name", cwd=source, FUSED_OPTIM_CUDA=choice)


def test_cuda_choice_that_is_refused(source: Path) -> None:
    command = (sys.executable, "setup.py", "--name")
    assert "expected 0, 1" in run(*command, cwd=source, fails=True, FUSED_OPTIM_CUDA="yes")


def test_installed_wheel_imports_from_elsewhere(installed: Path, tmp_path: Path) -> None:
    found = locate(installed, "-I", cwd=tmp_path)
    assert found["package"].is_relative_to(installed.parents[1])
    assert found["triton"] == found["package"].parent / "triton_kernels" / "__init__.py"
    assert not found["stray"].is_relative_to(installed.parents[1])


def test_editable_install_finds_the_triton_folder(source: Path, tmp_path: Path) -> None:
    checkout = shutil.copytree(source, tmp_path / "with space")
    python = fresh_environment(tmp_path / "env")
    install(python, "--editable", checkout)
    found = locate(python, "-I", cwd=tmp_path)
    assert found["package"] == checkout / "fused_optim" / "__init__.py"
    assert found["triton"] == checkout / "triton_kernels" / "__init__.py"
    assert not found["stray"].is_relative_to(checkout)


def test_an_editable_install_says_what_it_left_out(source: Path, tmp_path: Path) -> None:
    checkout = shutil.copytree(source, tmp_path / "checkout")
    python = fresh_environment(tmp_path / "env")
    install(python, "--editable", checkout)
    found = json.loads(run(python, "-I", "-m", "fused_optim", "--json", cwd=tmp_path))
    for what, extension in zip(("CUDA", "CPU"), found["extensions"].values(), strict=True):
        assert extension["says"] == f"not built: FUSED_OPTIM_{what}=0 was set"
        assert extension["remedy"].endswith(f"pip install --no-deps -e {checkout}")
    assert found["hidden"] is None


def test_a_checkout_hides_what_is_installed_and_says_so(
    source: Path, installed: Path, tmp_path: Path
) -> None:
    """Python prefers the folder where it starts; its Triton kernels are found all the same."""
    checkout = shutil.copytree(source, tmp_path / "with space")
    found = locate(installed, cwd=checkout)
    assert found["package"] == checkout / "fused_optim" / "__init__.py"
    assert found["triton"] == checkout / "triton_kernels" / "__init__.py"
    told = json.loads(run(installed, "-m", "fused_optim", "--json", cwd=checkout))
    there = installed.parents[1]
    assert told["hidden"].startswith(f"{checkout / 'fused_optim'} was imported, and hides what")
    assert str(there) in told["hidden"]
    assert "nothing was installed from this folder" in told["extensions"]["cpu"]["says"]
    elsewhere = json.loads(run(installed, "-m", "fused_optim", "--json", cwd=tmp_path))
    assert elsewhere["hidden"] is None


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_without_a_virtual_environment(source: Path, tmp_path: Path) -> None:
    checkout = shutil.copytree(source, tmp_path / "with space")
    run("make", "build", "VENV=0", f"PYTHON={sys.executable}", cwd=checkout)
    site = checkout / "build" / "site"
    found = locate(sys.executable, cwd=tmp_path, PYTHONPATH=str(site))
    assert found["package"] == site / "fused_optim" / "__init__.py"
    assert found["triton"] == site / "fused_optim" / "triton_kernels" / "__init__.py"


@pytest.mark.long
def test_isolated_build(source: Path, no_torch: str, tmp_path: Path) -> None:
    """What `pip install .` does: a build environment of its own, with no torch in it."""
    pip = (sys.executable, "-m", "pip")
    if subprocess.call([*pip, "download", "--no-deps", "pybind11"], cwd=tmp_path):
        pytest.skip("no package index within reach")
    checkout = shutil.copytree(source, tmp_path / "checkout")
    command = (*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path / "wheels", checkout)
    run(*command, cwd=tmp_path, PYTHONPATH=no_torch)
    (wheel,) = (tmp_path / "wheels").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.parametrize("triton", ["available", "blocked"])
def test_import_is_quiet_and_lazy(installed: Path, tmp_path: Path, triton: str) -> None:
    code = f"""if True:
        import os, sys, warnings
        if {triton == "blocked"}:
            sys.modules["triton"] = None
        import torch
        before = dict(os.environ), torch.get_rng_state()
        warnings.simplefilter("error")
        import fused_optim
        assert sys.modules.get("triton") is None
        assert not torch.cuda.is_initialized()
        assert os.environ == before[0] and torch.equal(torch.get_rng_state(), before[1])
    """
    assert run(installed, "-I", "-c", code, cwd=tmp_path) == ""
