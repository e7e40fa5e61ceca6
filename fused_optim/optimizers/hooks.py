"""Hooks that take gradients as they arrive: the checks that every user of them makes."""

from __future__ import annotations

import sys

import torch

from fused_optim import errors
from fused_optim.optimizers.base import FusedOptimizer
from fused_optim.precision import checks

_FUNCTION_BACKWARD = torch.autograd.function.BackwardCFunction.apply.__code__
_RUN_BACKWARD = torch.autograd.graph._engine_run_backward.__code__


def takes_hooks(param: torch.Tensor) -> bool:
    """Return whether a parameter gets gradients now."""
    return param.requires_grad and checks.trains(param)


def check_optimizer(optimizer: FusedOptimizer, what: str) -> None:
    """Refuse an optimizer whose gradients hooks must not take.

    Args:
        optimizer: the user's argument.
        what: the name of the function or class that takes the gradients.

    Raises:
        TypeError: it is no optimizer of this package.
        ValueError: other hooks take its gradients, or a parameter has one already or is float16.
    """
    if not isinstance(optimizer, FusedOptimizer):
        raise TypeError(
            f"{what} takes an optimizer of fused_optim, not a "
            f"{type(optimizer).__module__}.{type(optimizer).__name__}"
        )
    name = type(optimizer).__name__
    if optimizer._gradients is not None:
        raise ValueError(
            f"{what}: the gradients of this {name} already go to a "
            f"{type(optimizer._gradients).__name__}; remove() that first"
        )
    for number, group in enumerate(optimizer.param_groups):
        for index, param in enumerate(group["params"]):
            where = f"{name}: {errors.place(group, number, index)}"
            if param.dtype is torch.float16:
                raise ValueError(
                    f"{where} is float16, whose gradients need a GradScaler, which would not see "
                    f"them; use bfloat16 with {what}"
                )
            if param.grad is not None or getattr(param, "main_grad", None) is not None:
                raise ValueError(
                    f"{where} has a gradient; step with it or set it to None before {what}"
                )


def is_nested() -> bool:
    """Return whether the running backward pass was started by the backward of a Function.

    A reentrant checkpoint does that. FSDP2 hands gradients out in the backward of a Function too,
    but it starts no pass there.
    """
    frame, started = sys._getframe(), False
    while frame is not None:
        if frame.f_code is _FUNCTION_BACKWARD and started:
            return True
        started = started or frame.f_code is _RUN_BACKWARD
        frame = frame.f_back
    return False
