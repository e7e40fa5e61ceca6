"""The scalars of the Adam family, in which transformers, torch and TensorFlow differ.

All of them, complements such as ``1 - beta`` included, are doubles, computed on the host or, by
`scalars`, with tensors on the device. No kernel computes one.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fused_optim.ops import AdamWRow
from fused_optim.optimizers.scalars import (
    Scalar,
    at_least_zero,
    complement_of_power,
    number,
    sign,
    sqrt,
)


def transformers_row(group: dict[str, Any], step: int | torch.Tensor) -> AdamWRow:
    """Return transformers' row: decay after the update, eps on the uncorrected square root."""
    lr, beta1, beta2, eps, weight_decay = _hyperparameters(group, step)
    step_size = lr
    if group["correct_bias"]:
        step_size = lr * _correction(beta1, beta2, step)
    return AdamWRow(
        grad_mul=sign(group),
        omb1=1.0 - beta1,
        b2=beta2,
        omb2=1.0 - beta2,
        step_size=step_size,
        eps=eps,
        decay_after=1.0 - lr * at_least_zero(weight_decay),  # transformers ignores negative decay
        step=step,
    )


def torch_row(group: dict[str, Any], step: int | torch.Tensor, *, decoupled: bool) -> AdamWRow:
    """Return torch's row: decay before the update, or L2; eps on the corrected square root."""
    lr, beta1, beta2, eps, weight_decay = _hyperparameters(group, step)
    return AdamWRow(
        grad_mul=sign(group),
        l2=0.0 if decoupled else weight_decay,
        decay_before=1.0 - lr * weight_decay if decoupled else 1.0,
        omb1=1.0 - beta1,
        b2=beta2,
        omb2=1.0 - beta2,
        step_size=lr / complement_of_power(beta1, step),
        denom_scale=1.0 / sqrt(complement_of_power(beta2, step)),
        eps=eps,
        step=step,
    )


def tensorflow_row(
    group: dict[str, Any], step: int | torch.Tensor, *, decays: bool, lr_divisor: float
) -> AdamWRow:
    """Return Keras' row: decay before the update, eps on the uncorrected square root."""
    lr, beta1, beta2, eps, weight_decay = _hyperparameters(group, step)
    lr = lr / lr_divisor
    clip_value = group["clipvalue"]
    return AdamWRow(
        grad_mul=sign(group),
        clip_value=math.inf if clip_value is None else float(clip_value),
        decay_before=1.0 - lr * weight_decay if decays else 1.0,
        omb1=1.0 - beta1,
        b2=beta2,
        omb2=1.0 - beta2,
        step_size=lr * _correction(beta1, beta2, step),
        eps=eps,
        step=step,
    )


def _hyperparameters(group: dict[str, Any], step: int | torch.Tensor) -> tuple[Scalar, ...]:
    """Return lr, both betas, eps and weight decay as doubles."""
    values = (group["lr"], *group["betas"], group["eps"], group["weight_decay"])
    return tuple(number(value, step) for value in values)


def _correction(beta1: Scalar, beta2: Scalar, step: int | torch.Tensor) -> Scalar:
    """Return both bias corrections as one factor of the step size, where eps precedes them."""
    return sqrt(complement_of_power(beta2, step)) / complement_of_power(beta1, step)
