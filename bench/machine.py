"""What a reader needs to place the figures: machine, versions, commit."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

import fused_optim
from bench import ROOT
from bench.results import Machine
from bench.setups import PEERS


def describe(device: torch.device) -> Machine:
    """Return the machine that measures on ``device``."""
    cpu = re.search(r"model name\s*:\s*(.*)", _text("/proc/cpuinfo"))
    found = Machine(
        date=datetime.date.today().isoformat(),
        commit=_output("git", "describe", "--always", "--dirty") or "unknown",
        fused_optim=fused_optim.__version__,
        torch=torch.__version__,
        triton=_version("triton"),
        cuda=torch.version.cuda,
        driver=None,
        python=platform.python_version(),
        cpu=cpu[1] if cpu else platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        device=device.type,
        peers={name: v for name, dist in PEERS.items() if (v := _version(dist)) is not None},
    )
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found.gpu = properties.name
        found.multiprocessors = properties.multi_processor_count
        found.memory_bytes = properties.total_memory
        found.l2_bytes = properties.L2_cache_size
        versions = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found.driver = versions.split()[0] if versions else None
    return found


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if available := re.search(r"MemAvailable:\s*(\d+)", _text("/proc/meminfo")):
        return int(available[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _text(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def _output(*command: str) -> str | None:
    """Return what a command prints, or None where it can't be run."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
