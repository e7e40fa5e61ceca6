"""The CUDA kernels compiled as C++, and the `cuda` backend running on them on the CPU.

`path` compiles csrc/ once per change of it, into build/host, and `backend`
imports fused_optim.backends.cuda on top. Another process gets the same through
FUSED_OPTIM_TEST_BACKEND=cuda and FUSED_OPTIM_TEST_HOST_MODULE=<path>.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
from prepared import OnBuckets

from fused_optim.ops import KERNELS

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ("-std=c++17", "-g", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror")
FLAGS += ("-Wno-unknown-pragmas", "-include", str(CSRC / "host/keywords.h"), f"-I{CSRC}")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")

if sys.platform != "linux" or shutil.which(COMPILER) is None:
    pytest.skip("needs Linux and a C++ compiler", allow_module_level=True)
pybind11 = pytest.importorskip("pybind11")


def compile_objects(
    sources: Sequence[Path], out: Path, flags: Sequence[str], *, optimize: str = "-O1"
) -> list[Path]:
    """Compile sources for the host, two at a time; returns the objects."""

    def compile_one(source: Path) -> Path:
        made = out / f"{source.name}.o"
        level = "-O0" if source.name == "bindings.cpp" else optimize
        command = [COMPILER, *FLAGS, level, *flags, "-x", "c++", "-c", str(source), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return made

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def digest(*more: str) -> str:
    """Name of a build: changes with every source file and flag, and not with the checkout's place.

    So a copy of the checkout can be given this one's builds: support/planted_faults.py.
    """
    what = repr((COMPILER, FLAGS, sys.version, *more)).replace(str(ROOT), "")
    text = hashlib.sha256(what.encode())
    for source in sorted(CSRC.rglob("*")):
        if source.is_file():
            text.update(str(source.relative_to(CSRC)).encode() + source.read_bytes())
    return text.hexdigest()[:16]


def build_folder(kind: str, name: str) -> Path:
    """A folder for a build, under the checkout or, where that is read-only, the user's cache."""
    for base in (ROOT / "build", Path.home() / ".cache" / "fused_optim-tests"):
        try:
            folder = base / kind / name
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        except OSError:
            continue
    pytest.skip("no folder to build in")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a build's folder, so that the workers of one run build once, one after another."""
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def path(*flags: str) -> Path:
    """The host module, built with ``flags`` beside the usual ones."""
    folder = build_folder("host", digest(*flags))
    module = folder / "_C.so"
    with locked(folder):
        if not module.exists():
            includes = (pybind11.get_include(), sysconfig.get_path("include"))
            every = (*flags, "-fvisibility=hidden", *(f"-isystem{each}" for each in includes))
            sources = [CSRC / "bindings.cpp", *(CSRC / f"{name}.cu" for name in KERNELS)]
            objects = compile_objects([*sources, CSRC / "host/fibers.cpp"], folder, every)
            unfinished = folder / "unfinished.so"
            subprocess.run([COMPILER, "-shared", *flags, "-o", unfinished, *objects], check=True)
            unfinished.rename(module)
            for made in objects:
                made.unlink()
    return module


def backend() -> ModuleType:
    """The module fused_optim.backends.cuda over the host module, or what a variable names instead.

    FUSED_OPTIM_TEST_EXTENSION is the path of another module that acts as `_C`.
    """
    return backend_over(Path(os.environ.get("FUSED_OPTIM_TEST_EXTENSION") or path()))


@functools.cache
def backend_over(extension: Path) -> ModuleType:
    """The module fused_optim.backends.cuda over an extension; neither is left in sys.modules."""
    variables = {
        "FUSED_OPTIM_TEST_BACKEND": "cuda",
        "FUSED_OPTIM_TEST_HOST_MODULE": str(extension),
    }
    spec = importlib.util.find_spec("fused_optim.backends.cuda")
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(os.environ, variables), mock.patch.dict(sys.modules):
        spec.loader.exec_module(module)
    return module


@functools.cache
def kernels() -> OnBuckets:
    """The ops of `backend`, on buckets."""
    return OnBuckets(backend())
