"""Reports what was built, which backends will run, and why no faster one."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Sequence
from typing import Any

import torch

from fused_optim import errors
from fused_optim._version import __version__
from fused_optim.backends import dispatch, installation
from fused_optim.ops import FAMILIES

_OURS = ("FUSED_OPTIM_", "TRITON_", "CUDA_", "OMP_NUM_THREADS")
"""Beginnings of environment variables that decide on a backend or on its speed."""


def facts(optimizers: Sequence[type]) -> dict[str, Any]:
    """Return what `report` says, as dictionaries of strings that JSON can hold.

    Raises:
        ValueError: the environment variable ``FUSED_OPTIM_BACKEND`` names no backend.
    """
    chosen = {
        device_type: {
            errors.class_name(cls): _choice(_last_op(cls), device_type) for cls in optimizers
        }
        for device_type in _device_types()
    }
    return {
        "versions": _versions(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_OURS)},
        "devices": _devices(),
        "folder": str(installation.PACKAGE),
        "hidden": installation.hidden(),
        "extensions": {k: dataclasses.asdict(v) for k, v in installation.extensions().items()},
        "backends": chosen,
        "why_not": {name: _reasons(name, optimizers) for name in dispatch.BACKENDS[:-1]},
    }


def report(optimizers: Sequence[type]) -> str:
    """Return versions, devices, what was built and each optimizer's backend, for a bug report.

    Raises:
        ValueError: the environment variable ``FUSED_OPTIM_BACKEND`` names no backend.
    """
    found = facts(optimizers)
    lines = ["versions", *_aligned(found["versions"]), "", "devices", *_aligned(found["devices"])]
    if found["environment"]:
        lines += ["", "environment", *_aligned(found["environment"])]
    lines += ["", f"what was built, in {found['folder']}"]
    for name, extension in found["extensions"].items():
        lines += _aligned({name: extension["says"]}, 4)
        if extension["remedy"]:
            lines.append(f"        to mend it: {extension['remedy']}")
    if found["hidden"]:
        lines.append(f"  {found['hidden']}")
    lines += ["", "backend of each optimizer"]
    for device_type, chosen in found["backends"].items():
        lines += [f"  on {device_type}", *("  " + line for line in _aligned(chosen))]
    lines += ["", "why not a faster one", *_aligned(found["why_not"])]
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    triton = "not installed"
    if importlib.util.find_spec("triton") is not None:
        triton = importlib.metadata.version("triton")
    return {
        "fused_optim": __version__,
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}",
        "triton": triton,
    }


def _devices() -> dict[str, str]:
    rows = {"cpu": f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            memory = f"{found.total_memory / 2**30:.0f} GiB"
            rows[f"cuda:{index}"] = f"{found.name}, {memory}, sm_{found.major}{found.minor}"
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


def _reasons(backend: str, optimizers: Sequence[type]) -> str:
    """Return why ``backend`` can't run an optimizer, for all of them; each reason is given once."""
    reasons: dict[str, list[str]] = {}
    for cls in optimizers:
        reason = dispatch.why_not(backend, _last_op(cls))
        works = f"it works here, for {'CPU' if backend == 'cpu' else 'CUDA'} tensors"
        reasons.setdefault(reason or works, []).append(errors.class_name(cls))
    if len(reasons) == 1:
        return next(iter(reasons))
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())


def _last_op(cls: type) -> str:
    """Return an optimizer's last op: a backend that lacks any of its ops lacks this one."""
    return FAMILIES[cls._family].updates[-1]


def _aligned(rows: dict[str, str], width: int = 0) -> list[str]:
    width = max(width, *map(len, rows))
    return [f"  {name:<{width}}  {value}" for name, value in rows.items()]
