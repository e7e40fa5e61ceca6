"""What a reader needs to place the figures, as the system says it; None where it does not.

Processes without torch import this, too.
"""

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import ROOT

DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


@dataclass
class Machine:
    """Where the figures come from."""

    date: str
    commit: str
    fused_optim: str
    torch: str
    triton: str | None
    cuda: str | None
    driver: str | None
    python: str
    cpu: str
    cores: int
    threads: int
    device: str  # "cpu" or "cuda"
    gpu: str | None = None
    multiprocessors: int | None = None
    memory_bytes: int | None = None
    l2_bytes: int | None = None
    peers: dict[str, str] = field(default_factory=dict)  # name to version

    @property
    def place(self) -> tuple[Any, ...]:
        """What has to be the same where figures are mixed."""
        return (self.gpu,) if self.device == "cuda" else (self.cpu, self.threads)

    def __str__(self) -> str:
        """What figures were measured on and of, in one line."""
        versions = {"torch": self.torch, "Triton": self.gpu and self.triton}
        versions |= {"CUDA": self.gpu and self.cuda, "driver": self.driver}
        facts = [self.gpu or f"{self.cpu}, {self.threads} threads"]
        facts += [f"{name} {version}" for name, version in versions.items() if version]
        facts += [f"fused_optim {self.fused_optim} ({self.commit})", self.date]
        return "  ·  ".join(facts)


def output(*command: str) -> str | None:
    """Return what a command prints, if it succeeds in time: a driver's tools may hang."""
    options = {"capture_output": True, "text": True, "timeout": 90, "check": True}
    try:
        return subprocess.run(command, cwd=ROOT, **options).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def text(path: str) -> str:
    """Return a file of /proc or /sys, or nothing."""
    return Path(path).read_text() if Path(path).exists() else ""


def describe(device: Any, peers: dict[str, str]) -> Machine:
    """Return where figures of a torch.device come from; ``peers`` are distributions by name."""
    import torch

    import fused_optim

    cpu = re.search(r"model name\s*:\s*(.*)", text("/proc/cpuinfo"))
    found = Machine(
        date=datetime.date.today().isoformat(),
        commit=output("git", "describe", "--always", "--dirty") or "unknown",
        fused_optim=fused_optim.__version__,
        torch=torch.__version__,
        triton=version("triton"),
        cuda=torch.version.cuda,
        driver=None,
        python=platform.python_version(),
        cpu=cpu[1] if cpu else platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        device=device.type,
        peers={name: v for name, dist in peers.items() if (v := version(dist)) is not None},
    )
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found.gpu = properties.name
        found.multiprocessors = properties.multi_processor_count
        found.memory_bytes = properties.total_memory
        found.l2_bytes = properties.L2_cache_size
        found.driver = (output(*DRIVER) or "").partition("\n")[0] or None
    return found


def free_bytes(device: Any) -> int:
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    if available := re.search(r"MemAvailable:\s*(\d+)", text("/proc/meminfo")):
        return int(available[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
