"""The `cpu` backend's library, compiled by the recipe of setup.py with more flags: `path`."""

from __future__ import annotations

import functools
import os
import runpy
from pathlib import Path
from typing import Any
from unittest import mock

import host_module

ROOT = host_module.ROOT


def recipe() -> dict[str, Any]:
    """Return what setup.py defines, without its call of `setuptools.setup`."""
    with mock.patch("setuptools.setup"), mock.patch.dict(os.environ, {"FUSED_OPTIM_CUDA": "0"}):
        return runpy.run_path(str(ROOT / "setup.py"))


@functools.cache
def path(*flags: str) -> Path:
    """Return the library, built once per change of csrc/ with ``flags`` beside the usual ones.

    It is optimized less than what is installed, as sanitizers make compiling slow.
    """
    folder = host_module.build_folder("cpu-with", host_module.digest("cpu", *flags))
    library = folder / "_cpu.so"
    with host_module.locked(folder):
        if not library.exists():
            setup = recipe()
            names = setup["cpu_script"].__globals__
            names["HOST_FLAGS"] = ["-O1" if f == "-O3" else f for f in names["HOST_FLAGS"]]
            compiler = " ".join((host_module.COMPILER, *flags))
            with mock.patch.dict(os.environ, {"CXX": compiler}):
                script = setup["cpu_script"](library)
            (folder / "build.ninja").write_text(script)
            setup["run_ninja"](folder)
    return library
