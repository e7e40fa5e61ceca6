"""The CPU backend: csrc's update math, vectorised for the machine's instruction set, on threads.

The extension `_cpu` is built where the installation found a C++ compiler; without it, importing
this module fails. It runs on the OpenMP threads that torch has loaded, as many as
``torch.get_num_threads()`` says.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import torch

from fused_optim.backends.compiled import WithAdafactor

__all__ = [
    "adafactor_apply_",
    "adafactor_finalise_",
    "adafactor_statistics",
    "adafactor_update_sums",
    "adamw_",
    "eight_bit_updates",
    "grad_square_sums",
    "keeps_sums",
    "lion_",
    "needs",
    "shard_sums",
    "shard_update_sum",
]

_RUNTIMES = re.compile(r"(/\S*lib(?:gomp|omp|iomp5)\b[^/]*\.(?:so|dylib)[^/\s]*)")


def _extension() -> ModuleType:
    if importlib.util.find_spec("fused_optim._cpu") is None:
        raise ImportError(
            "this installation of fused_optim has no CPU kernels; installing it where there is a "
            "C++ compiler (g++ or clang++) builds them"
        )
    from fused_optim import _cpu

    _cpu.use_runtime(_openmp_runtime())
    return _cpu


def _openmp_runtime() -> str:
    """Return the path of the OpenMP runtime that torch has loaded, or an empty string.

    With more than one, it is torch's own copy.
    """
    try:
        loaded = Path("/proc/self/maps").read_text()
    except OSError:
        return ""
    found = list(dict.fromkeys(_RUNTIMES.findall(loaded)))
    own = str(Path(torch.__file__).parent)
    found.sort(key=lambda path: not path.startswith(own))
    return found[0] if found else ""


def _place(device: torch.device) -> dict[str, int]:
    return {"device": 0, "stream": 0, "threads": torch.get_num_threads()}


_ops = WithAdafactor(_extension(), _place)
needs = _ops.needs
eight_bit_updates = ("adamw",)  # those that have moments in 8 bits
adamw_ = _ops.adamw_
lion_ = _ops.lion_
grad_square_sums = _ops.grad_square_sums
adafactor_statistics = _ops.adafactor_statistics
adafactor_finalise_ = _ops.adafactor_finalise_
adafactor_update_sums = _ops.adafactor_update_sums
adafactor_apply_ = _ops.adafactor_apply_
keeps_sums = _ops.keeps_sums
shard_sums = _ops.shard_sums
shard_update_sum = _ops.shard_update_sum


@functools.cache
def instruction_set() -> str:
    """Return the instruction set that the kernels use, as compilers call it."""
    return _ops.extension.ISA
