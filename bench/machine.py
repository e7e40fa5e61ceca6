"""What a reader needs to place the figures: machine, versions, commit."""

import datetime
import os
import platform
import re

import torch

import fused_optim
from bench import system
from bench.results import Machine
from bench.setups import PEERS


def describe(device: torch.device) -> Machine:
    cpu = re.search(r"model name\s*:\s*(.*)", system.text("/proc/cpuinfo"))
    found = Machine(
        date=datetime.date.today().isoformat(),
        commit=system.output("git", "describe", "--always", "--dirty") or "unknown",
        fused_optim=fused_optim.__version__,
        torch=torch.__version__,
        triton=system.version("triton"),
        cuda=torch.version.cuda,
        driver=None,
        python=platform.python_version(),
        cpu=cpu[1] if cpu else platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        device=device.type,
        peers={name: v for name, dist in PEERS.items() if (v := system.version(dist)) is not None},
    )
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found.gpu = properties.name
        found.multiprocessors = properties.multi_processor_count
        found.memory_bytes = properties.total_memory
        found.l2_bytes = properties.L2_cache_size
        found.driver = (system.output(*system.DRIVER) or "").partition("\n")[0] or None
    return found


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if available := re.search(r"MemAvailable:\s*(\d+)", system.text("/proc/meminfo")):
        return int(available[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
