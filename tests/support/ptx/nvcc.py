"""nvcc's PTX of csrc/, compiled once per change of it into build/ptx."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import host_module
import pytest

from fused_optim.ops import KERNELS

FLAGS = ("-O3", "-std=c++17", "-fmad=false", "-ptx")  # setup.py's, which decide what is computed
ARCHITECTURES = ("90", "75")
"""An H100's, and the one whose PTX is shipped for GPUs that have no machine code in the build."""


def find_nvcc() -> str:
    """Return the path of nvcc, on PATH or in CUDA_HOME; skip the test or module without one."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)
    if found is None:
        pytest.skip("needs nvcc, on PATH or in CUDA_HOME", allow_module_level=True)
    return found


@functools.cache
def modules(architecture: str) -> dict[str, str]:
    """Return the PTX of every source of csrc/ for an architecture, by the source's name."""
    nvcc = find_nvcc()
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    folder = host_module.build_folder("ptx", host_module.digest(version, *FLAGS, architecture))

    def compile_one(name: str) -> None:
        made = folder / f"{Path(name).name}.ptx"
        if made.exists():
            return
        unfinished = made.with_suffix(".unfinished")
        source = host_module.CSRC / f"{name}.cu"
        command = [nvcc, *FLAGS, f"-arch=compute_{architecture}", f"-I{host_module.CSRC}"]
        done = subprocess.run(
            [*command, str(source), "-o", str(unfinished)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        unfinished.rename(made)

    with host_module.locked(folder), ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, KERNELS))
    return {name: (folder / f"{Path(name).name}.ptx").read_text() for name in KERNELS}
