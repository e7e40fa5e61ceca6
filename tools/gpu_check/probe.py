"""Describes the machine in JSON for gpu-check: ``python -m tools.gpu_check.probe FILE``.

The probe has a process of its own: the driver may hang, and gpu-check itself needs no torch.
"""

import json
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from bench import system

PACKAGES = "torch triton transformers accelerate numpy setuptools ninja pybind11 pytest"
PACKAGES += " pytest-xdist pytest-timeout hypothesis matplotlib pandas seaborn jinja2 rich"


def probe() -> dict[str, Any]:
    release = re.search(r"release ([\d.]+)", system.output(str(tool("nvcc")), "--version") or "")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _gpu(),
        "driver": system.output(*system.DRIVER),
        "nvcc": release and f"{tool('nvcc')} {release[1]}",
        "compute_sanitizer": tool("compute-sanitizer"),
        "packages": {name: system.version(name) for name in PACKAGES.split()},
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


def tool(name: str) -> str | None:
    """Return the path of a tool, found on PATH or in a CUDA toolkit, which is rarely on PATH."""
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    places = [Path(home, folder) for home in homes if home for folder in ("bin", name)]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, places)))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(probe(), indent=1))
