"""The CPU extension: what its build needs, says and leaves, and what the library links."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXTENSION = find_spec("fused_optim._cpu")
built = pytest.mark.skipif(EXTENSION is None, reason="the CPU extension is not built")
BUILD = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")


def run(*command: str | Path, cwd: Path, **env: str) -> tuple[int, str]:
    """Exit status and output of a command; builds leave the CUDA extension out."""
    hidden = ("PYTHONPATH", "FUSED_OPTIM_CPU", "CXX")
    clean = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean | {"FUSED_OPTIM_CUDA": "0"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what a build reads."""
    copy = tmp_path / "with space"
    copy.mkdir()
    for name in ("csrc", "fused_optim", "triton_kernels"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.mark.parametrize("request_", ["auto", "0", "1"])
def test_no_compiler_is_no_error_unless_it_is_asked_for(source: Path, request_: str) -> None:
    empty = source / "empty"
    empty.mkdir()
    status, output = run(*BUILD, cwd=source, PATH=str(empty), FUSED_OPTIM_CPU=request_)
    assert (status != 0) == (request_ == "1"), output
    assert ("no C++ compiler: neither g++ nor clang++ is on PATH" in output) == (request_ == "1")
    assert not list((source / "fused_optim").glob("*.so"))
    if status == 0:  # what pip hides, `python -m fused_optim` says
        record = json.loads((source / "fused_optim" / "_build.json").read_text())
        found = record["extensions"]["CPU"]
        assert found["cause"] == ("unwanted" if request_ == "0" else "compiler")
        assert not found["built"] and record["python"] == sys.implementation.cache_tag


@pytest.mark.parametrize("request_", ["auto", "1"])
def test_a_compiler_that_fails(source: Path, tmp_path: Path, request_: str) -> None:
    compiler = tmp_path / "broken++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    status, output = run(*BUILD, cwd=source, CXX=str(compiler), FUSED_OPTIM_CPU=request_)
    assert (status != 0) == (request_ == "1"), output
    assert "it did not compile" in output
    assert not list((source / "fused_optim").glob("*.so"))


def test_a_choice_that_is_refused(source: Path) -> None:
    status, output = run(*BUILD, cwd=source, FUSED_OPTIM_CPU="yes")
    assert status != 0 and "FUSED_OPTIM_CPU=yes: expected 0, 1 or auto" in output


@built
@pytest.mark.skipif(not shutil.which("ldd"), reason="needs ldd")
def test_it_links_neither_torch_nor_an_openmp_runtime(tmp_path: Path) -> None:
    status, output = run("ldd", EXTENSION.origin, cwd=tmp_path)
    libraries = re.sub(r"\(0x[0-9a-f]+\)", "", output)
    assert status == 0
    for name in ("torch", "c10", "gomp", "libomp", "python", "not found"):
        assert name not in libraries


@built
def test_it_imports_without_torch(tmp_path: Path) -> None:
    code = f"""if True:
        import importlib.util as util, sys
        spec = util.spec_from_file_location("fused_optim._cpu", {EXTENSION.origin!r})
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert "torch" not in sys.modules
        print(module.CHUNK_SIZE, module.ISA)
    """
    status, output = run(sys.executable, "-c", code, cwd=tmp_path)
    assert status == 0 and output.split()[0] == "8192", output


@built
@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_instruction_sets_share_no_function(tmp_path: Path) -> None:
    """The linker keeps one of equal inline functions, maybe one that the machine can't run."""
    objects = sorted((ROOT / "build/cpu").glob("*/kernels_v*.o"))
    if len(objects) < 2:
        pytest.skip("the objects of the build are not here")
    defined = []
    for path in objects:
        status, symbols = run("nm", "-C", "--defined-only", path, cwd=tmp_path)
        assert status == 0
        lines = [line.split(maxsplit=2) for line in symbols.splitlines()]
        defined.append({name for _, kind, name in lines if kind in "WVwvTu"})
    for first, second in zip(defined, defined[1:], strict=False):
        assert not first & second
