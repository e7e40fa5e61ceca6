"""Checks of what users hand in, with errors that say what was got, what is needed and what to do.

Every check runs before anything is changed.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch

from fused_optim import precision


def place(group: dict[str, Any], group_index: int, index: int) -> str:
    """Return how errors call a parameter: by number, group and, where it has one, name."""
    names = group.get("param_names")
    name = f" ({names[index]!r})" if names else ""
    return f"parameter {index}{name} of group {group_index}"


def check_params(params: list[Any]) -> None:
    """Refuse a parameter that occurs twice in a group: a fused step would update it twice."""
    tensors = [p[1] if isinstance(p, tuple) else p for p in params]
    if len({id(p) for p in tensors}) != len(tensors):
        raise ValueError(
            "a parameter occurs twice in one group; list each parameter once "
            "(tied weights count as one)"
        )


def check_param(param: torch.Tensor, where: str) -> None:
    """Refuse parameters that can't be updated: complex, integer, sparse, overlapping, sharded."""
    if hasattr(param, "device_mesh"):
        raise NotImplementedError(
            f"{where} is a DTensor; sharded parameters (FSDP2, tensor parallel) are not supported "
            "by this version, replicated ones (DistributedDataParallel) are"
        )
    if param.is_complex():
        raise ValueError(
            f"{where} is {param.dtype}; complex parameters are not supported, optimize "
            "torch.view_as_real(p) instead"
        )
    if param.dtype not in precision.SUPPORTED_DTYPES:
        raise ValueError(
            f"{where} is {param.dtype}; parameters must be float32, float64, float16 or bfloat16"
        )
    if param.layout is not torch.strided:
        raise ValueError(f"{where} has layout {param.layout}; only dense parameters are supported")
    if _overlaps(param):
        raise ValueError(
            f"{where} has elements that share memory (strides {param.stride()} for shape "
            f"{tuple(param.shape)}); pass p.contiguous() or the tensor it was expanded from"
        )


def check_gradient(grad: torch.Tensor, param: torch.Tensor, optimizer: str, where: str) -> None:
    """Refuse gradients that no backend can use."""
    if grad.layout is not torch.strided:
        raise RuntimeError(
            f"{optimizer} does not support sparse gradients: that of {where} has layout "
            f"{grad.layout}. Use sparse=False in the embedding, or torch.optim.SparseAdam"
        )
    if grad.dtype not in precision.SUPPORTED_DTYPES:
        raise RuntimeError(f"{optimizer}: the gradient of {where} is {grad.dtype}, not a float")
    if grad.shape != param.shape or grad.device != param.device:
        raise RuntimeError(
            f"{optimizer}: the gradient of {where} has shape {tuple(grad.shape)} on {grad.device}, "
            f"the parameter {tuple(param.shape)} on {param.device}; they must agree"
        )


def check_number(
    value: Any,
    name: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_high: bool = False,
) -> None:
    """Refuse a hyperparameter that is not a number within [low, high], or [low, high).

    A tensor of one element counts as its number. The error gives the interval.
    """
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element, got shape {tuple(value.shape)}")
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"Invalid {name}: {value!r} - should be a number")
    if not low <= value <= high or (open_high and value == high):
        if high == math.inf:
            allowed = "a number, not NaN" if low == -math.inf else f">= {low}"
        elif low == -math.inf:
            allowed = f"<= {high}"
        else:
            allowed = f"in [{low}, {high}{')' if open_high else ']'}"
        raise ValueError(f"Invalid {name}: {value} - should be {allowed}")


def plain(value: Any) -> Any:
    """Return a hyperparameter with Python's numbers in place of NumPy's, in pairs too.

    A checkpoint with a NumPy scalar in it needs ``torch.load(..., weights_only=False)``.
    """
    if type(value) in (tuple, list):
        return type(value)(map(plain, value))
    if isinstance(value, numbers.Real) and type(value) not in (bool, int, float):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value


def check_betas(betas: Any) -> None:
    """Refuse anything but two numbers in [0, 1)."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"Invalid betas: {betas!r} - should be a pair of numbers in [0.0, 1.0)")
    for i, beta in enumerate(betas):
        check_number(beta, f"beta parameter at index {i}", low=0.0, high=1.0, open_high=True)


def check_flag(value: Any, name: str) -> None:
    """Refuse anything but True and False."""
    if not isinstance(value, bool):
        raise ValueError(f"Invalid {name}: {value!r} - should be True or False")


def check_common(group: dict[str, Any]) -> None:
    """Check the options that every optimizer takes."""
    low_precision, state_dtype = group["low_precision"], group["state_dtype"]
    if low_precision not in precision.LOW_PRECISION_MODES:
        raise ValueError(
            f"Invalid low_precision: {low_precision!r} - should be one of "
            f"{', '.join(precision.LOW_PRECISION_MODES)}"
        )
    if state_dtype is not None and state_dtype not in precision.STATE_DTYPES:
        raise ValueError(
            f"Invalid state_dtype: {state_dtype!r} - should be torch.float32, torch.bfloat16 or "
            "torch.float16"
        )
    check_flag(group["maximize"], "maximize")
    check_flag(group["capturable"], "capturable")


def _overlaps(tensor: torch.Tensor) -> bool:
    """Return whether two elements may share memory (exact for the strides that views produce)."""
    if tensor.numel() == 0:
        return False
    reach = 0
    dims = sorted((st, size) for st, size in zip(tensor.stride(), tensor.shape, strict=True))
    for stride, size in dims:
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False
