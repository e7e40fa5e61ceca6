"""The host scalars of the Adam family: what transformers, torch and TensorFlow do differently.

Everything is a Python double; complements such as ``1 - beta`` are taken here, never in a kernel.
"""

from __future__ import annotations

import math
from typing import Any

from fused_optim.tables import AdamWRow


def bias_correction(beta: float, step: int) -> float:
    """Return ``1 - beta**step`` without the cancellation of the direct formula."""
    return -math.expm1(step * math.log(beta)) if beta > 0.0 else 1.0


def sign(group: dict[str, Any]) -> float:
    """Return what gradients are multiplied with: -1 to maximise."""
    return -1.0 if group["maximize"] else 1.0


def transformers_row(group: dict[str, Any], step: int) -> AdamWRow:
    """Decay after the update; eps on the square root before its bias correction."""
    lr, (beta1, beta2) = float(group["lr"]), group["betas"]
    step_size = lr
    if group["correct_bias"]:
        step_size *= math.sqrt(bias_correction(beta2, step)) / bias_correction(beta1, step)
    # transformers ignores a negative weight decay.
    decay = 1.0 - lr * group["weight_decay"] if group["weight_decay"] > 0.0 else 1.0
    return AdamWRow(
        grad_mul=sign(group),
        omb1=1.0 - beta1,
        b2=beta2,
        omb2=1.0 - beta2,
        step_size=step_size,
        eps=group["eps"],
        decay_after=decay,
        step=step,
    )


def torch_row(group: dict[str, Any], step: int, *, decoupled: bool) -> AdamWRow:
    """Decay before the update, or L2; eps on the bias-corrected square root."""
    lr, (beta1, beta2) = float(group["lr"]), group["betas"]
    weight_decay = group["weight_decay"]
    return AdamWRow(
        grad_mul=sign(group),
        l2=0.0 if decoupled else weight_decay,
        decay_before=1.0 - lr * weight_decay if decoupled else 1.0,
        omb1=1.0 - beta1,
        b2=beta2,
        omb2=1.0 - beta2,
        step_size=lr / bias_correction(beta1, step),
        denom_scale=1.0 / math.sqrt(bias_correction(beta2, step)),
        eps=group["eps"],
        step=step,
    )


def tensorflow_row(group: dict[str, Any], step: int, *, decays: bool, lr: float) -> AdamWRow:
    """Decay before the update; eps on the square root before its bias correction."""
    beta1, beta2 = group["betas"]
    clip_value = group["clipvalue"]
    correction = math.sqrt(bias_correction(beta2, step)) / bias_correction(beta1, step)
    return AdamWRow(
        grad_mul=sign(group),
        clip_value=math.inf if clip_value is None else clip_value,
        decay_before=1.0 - lr * group["weight_decay"] if decays else 1.0,
        omb1=1.0 - beta1,
        b2=beta2,
        omb2=1.0 - beta2,
        step_size=lr * correction,
        eps=group["eps"],
        step=step,
    )
