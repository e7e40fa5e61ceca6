"""What this installation will run, and why nothing faster: ``python -m fused_optim``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform

import torch

from fused_optim._version import __version__
from fused_optim.backends import dispatch
from fused_optim.optimizers.adafactor import Adafactor
from fused_optim.optimizers.adamw import AdamW
from fused_optim.optimizers.tf_compat import AdamWeightDecay
from fused_optim.optimizers.torch_compat import Adafactor as TorchAdafactor
from fused_optim.optimizers.torch_compat import Adam as TorchAdam
from fused_optim.optimizers.torch_compat import AdamW as TorchAdamW

_OPTIMIZERS = (AdamW, Adafactor, AdamWeightDecay, TorchAdamW, TorchAdam, TorchAdafactor)


def info() -> str:
    """Return a report of versions, devices and the backend of each optimizer, for a bug report.

    Raises:
        ValueError: the environment variable ``FUSED_OPTIM_BACKEND`` names no backend.
    """
    lines = ["versions", *_aligned(_versions()), "", "devices", *_aligned(_devices())]
    lines += ["", "backend of each optimizer"]
    for device_type in _device_types():
        rows = [(_name(cls), _choice(cls._updates[-1], device_type)) for cls in _OPTIMIZERS]
        lines += [f"  on {device_type}", *("  " + line for line in _aligned(rows))]
    lines += ["", "why not a faster one"]
    lines += _aligned([(backend, _reasons(backend)) for backend in dispatch.BACKENDS[:-1]])
    return "\n".join(lines)


def _versions() -> list[tuple[str, str]]:
    triton = "not installed"
    if importlib.util.find_spec("triton") is not None:
        triton = importlib.metadata.version("triton")
    return [
        ("fused_optim", __version__),
        ("Python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"),
        ("triton", triton),
    ]


def _devices() -> list[tuple[str, str]]:
    rows = [("cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            memory = f"{found.total_memory / 2**30:.0f} GiB"
            rows.append((f"cuda:{index}", f"{found.name}, {memory}, sm_{found.major}{found.minor}"))
    return rows


def _device_types() -> list[str]:
    return ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]


def _choice(op: str, device_type: str) -> str:
    try:
        chosen = dispatch.choose("auto", op, torch.device(device_type))
    except RuntimeError as error:
        return f"none: {error}"
    named, setting = dispatch.resolve("auto")
    by_variable = named == chosen and device_type != "cpu"
    return f"{chosen} (named by {setting})" if by_variable else chosen


def _reasons(backend: str) -> str:
    """Return why ``backend`` can't run some optimizer; the same reason is given once."""
    reasons: dict[str, list[str]] = {}
    for cls in _OPTIMIZERS:
        reason = dispatch.why_not(backend, cls._updates[-1])
        reasons.setdefault(reason or "it works here, for CUDA tensors", []).append(_name(cls))
    if len(reasons) == 1:
        return next(iter(reasons))
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())


def _name(cls: type) -> str:
    prefix = "torch_compat." if cls.__module__.endswith("torch_compat") else ""
    return prefix + cls.__name__


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]
