"""The CUDA backend: ops of docs/internals/kernel_contract.md, launched through `_C`.

The extension is built where the installation found a CUDA compiler; without it, importing this
module fails.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
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


def _extension() -> ModuleType:
    """Return `_C`, or in tests the module that runs its kernels on CPU tensors."""
    path = os.environ.get("FUSED_OPTIM_TEST_HOST_MODULE")
    if os.environ.get("FUSED_OPTIM_TEST_BACKEND") == "cuda" and path:
        name = "fused_optim_host._C"  # of its own: pybind11 keeps one module for each name
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if importlib.util.find_spec("fused_optim._C") is None:
        raise ImportError(
            "this installation of fused_optim has no CUDA kernels; installing it where a GPU and "
            "nvcc are (on PATH, in CUDA_HOME or from PyPI: nvidia-cuda-nvcc) builds them, and with "
            "FUSED_OPTIM_CUDA_ARCHS=all it takes no GPU"
        )
    from fused_optim import _C

    return _C


_C = _extension()


def _place(device: torch.device) -> dict[str, int]:
    """Return the device's number and its current stream; zeros for the CPU, in tests."""
    if device.type != "cuda":
        return {"device": 0, "stream": 0}
    index = torch.cuda.current_device() if device.index is None else device.index
    return {"device": index, "stream": torch.cuda.current_stream(index).cuda_stream}


_ops = WithAdafactor(_C, _place)
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
def why_not(device: int) -> str | None:
    """Return why the kernels can't run on a CUDA device, or None if they can.

    The driver may be older than the runtime that was linked, or no kernel was compiled for the
    device's architecture.
    """
    try:
        _C.check_device(device)
    except RuntimeError as error:
        return f"{error}; kernels are built for {_C.ARCHITECTURES}"
    return None
