"""What gpu-check runs on: ``python -m tools.gpu_check.probe FILE`` writes it as JSON.

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

PACKAGES = "torch triton transformers accelerate numpy setuptools ninja pybind11 pytest"
PACKAGES += " pytest-xdist pytest-timeout hypothesis matplotlib pandas seaborn jinja2 rich"


def probe() -> dict[str, Any]:
    """Return the machine, its GPU (None without one), tools and packages."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _gpu(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "nvcc": _nvcc(),
        "compute_sanitizer": next(_tools("compute-sanitizer", "compute-sanitizer"), None),
        "packages": {name: _version(name) for name in PACKAGES.split()},
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


def _output(*command: str) -> str | None:
    """Return what a tool prints, or None where there is no such tool, or it hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _tools(name: str, folder: str = "bin") -> Any:
    """Yield the places of a tool: on PATH, or in a folder of a toolkit."""
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    places = [str(Path(home) / sub / name) for home in homes if home for sub in ("bin", folder)]
    return filter(None, map(shutil.which, (name, *places)))


def _nvcc() -> str | None:
    for path in _tools("nvcc"):
        if printed := _output(path, "--version"):
            release = re.search(r"release ([\d.]+)", printed)
            return f"{path} {release[1] if release else '(version unknown)'}"
    return None


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(probe(), indent=1))
