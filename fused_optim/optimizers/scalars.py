"""Arithmetic of a step's scalars, on Python doubles and on float64 tensors.

The formulas of a row are written once. On the host they take Python numbers. In a ``capturable``
group they take a float64 tensor of step counts on the device, and return such tensors.
"""

from __future__ import annotations

import math
from typing import Any

import torch

Scalar = float | torch.Tensor


def number(value: Scalar, step: int | torch.Tensor) -> Scalar:
    """Return a hyperparameter as a double, on the device of the step counts if it is there already.

    Args:
        value: a number or a tensor of one element.
        step: a step count, or a float64 tensor of them. A hyperparameter on the same device stays
            there, and is read anew by each replay of a CUDA graph.
    """
    if isinstance(value, torch.Tensor) and isinstance(step, torch.Tensor):
        if value.device == step.device:
            return value.detach().reshape(()).to(torch.float64)
    return float(value)


def sign(group: dict[str, Any]) -> float:
    """Return the factor of a group's gradients: 1, or -1 to maximise."""
    return -1.0 if group["maximize"] else 1.0


def sqrt(x: Scalar) -> Scalar:
    """Return the square root."""
    return torch.sqrt(x) if isinstance(x, torch.Tensor) else math.sqrt(x)


def minimum(a: Scalar, b: Scalar) -> Scalar:
    """Return the smaller of two scalars."""
    if isinstance(b, torch.Tensor):
        a, b = b, a
    return torch.clamp(a, max=b) if isinstance(a, torch.Tensor) else min(a, b)


def at_least_zero(x: Scalar) -> Scalar:
    """Return ``x``, or 0 where it is negative."""
    return torch.clamp(x, min=0.0) if isinstance(x, torch.Tensor) else max(x, 0.0)


def complement_of_power(base: Scalar, exponent: int | torch.Tensor) -> Scalar:
    """Return ``1 - base**exponent`` without the cancellation of the direct formula.

    Args:
        base: in [0, 1).
        exponent: positive.
    """
    if isinstance(base, torch.Tensor):
        return -torch.expm1(exponent * torch.log(base))
    if base <= 0.0:
        return 1.0
    if isinstance(exponent, torch.Tensor):
        return -torch.expm1(exponent * math.log(base))
    return -math.expm1(exponent * math.log(base))


def relative_step_size(group: dict[str, Any], step: int | torch.Tensor) -> Scalar:
    """Return rho: the step size before the parameter's root mean square scales it."""
    if not group["relative_step"]:
        return number(group["lr"], step)
    ceiling = 1e-6 * step if group["warmup_init"] else 1e-2
    return minimum(ceiling, 1.0 / sqrt(step))
