"""What gpu-check runs on: ``python -m bench.gpu_check_probe FILE`` writes it as JSON.

A process of its own: the driver may hang, and a process that only starts others needs no torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "numpy",
    "setuptools",
    "ninja",
    "pybind11",
    "pytest",
    "pytest-xdist",
    "pytest-timeout",
    "hypothesis",
    "matplotlib",
)


def probe() -> dict[str, Any]:
    """Return the machine, its GPU (None without one), tools and packages."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _gpu(),
        "driver": _first_line(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        ),
        "nvcc": _nvcc(),
        "compute_sanitizer": _sanitizer(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _gpu() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "architecture": f"{found.major}.{found.minor}",
        "memory_bytes": found.total_memory,
        "multiprocessors": found.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(command: list[str]) -> str | None:
    """Return the first line that a tool prints, or None where there is no such tool."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.splitlines()), None)


def _toolkits() -> list[Path]:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return [Path(home) for home in homes if home]


def _nvcc() -> str | None:
    paths = [shutil.which("nvcc"), *(str(home / "bin" / "nvcc") for home in _toolkits())]
    for path in filter(None, paths):
        try:
            done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            continue
        release = re.search(r"release ([\d.]+)", done.stdout)
        return f"{path} {release[1] if release else '(version unknown)'}"
    return None


def _sanitizer() -> str | None:
    """Return the path of compute-sanitizer, which toolkits keep in either of two folders."""
    name = "compute-sanitizer"
    paths = [shutil.which(name)]
    paths += [str(home / folder / name) for home in _toolkits() for folder in ("bin", name)]
    return next((path for path in paths if path and os.access(path, os.X_OK)), None)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(probe(), indent=1))
