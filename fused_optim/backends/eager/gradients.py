"""Prepares gradients: unscales, clamps and clips them; and sums their squares."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from fused_optim.precision.encoding import blocks


def skipped(launch) -> bool:
    """Return whether a gradient scaler found infinities, so that the op must write nothing."""
    return launch.found_inf is not None and bool(launch.found_inf.item())


def preparation(
    row, launch, dtype: torch.dtype, index: int | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function that turns a raw gradient block into the ``g`` of the update math.

    Args:
        row: the tensor's row; ``grad_mul`` and, where it has one, ``clip_value`` are read.
        launch: the launch; ``grad_scale`` and ``clip`` are read.
        dtype: the math dtype.
        index: the tensor's index in its bucket, or None to leave the clip coefficient out.
    """
    multiplier = row.grad_mul
    if launch.grad_scale is not None:
        multiplier = (1.0 / launch.grad_scale.to(dtype)) * multiplier
    clip_value = getattr(row, "clip_value", math.inf)
    clip = None
    if launch.clip is not None and index is not None:
        clip = launch.clip[index] if launch.clip_per_tensor else launch.clip

    def prepare(grad: torch.Tensor) -> torch.Tensor:
        g = grad.to(dtype)
        if isinstance(multiplier, torch.Tensor) or multiplier != 1.0:
            g = g * multiplier
        if clip_value != math.inf:
            g = g.clamp(-clip_value, clip_value)
        if clip is not None:
            g = g * clip
        return g

    return prepare


def grad_square_sums(bucket, launch) -> torch.Tensor:
    """Return ``[entries]``: the sum of squares of each gradient, prepared but not yet clipped."""
    dtype = torch.float64 if bucket.key.dtype is torch.float64 else torch.float32
    sums = torch.zeros(len(bucket.entries), dtype=torch.float64, device=bucket.key.device)
    for index, entry in enumerate(bucket.entries):
        prepare = preparation(bucket.rows[entry.row], launch, dtype, None)
        for _, (block,) in blocks([entry.grad]):
            sums[index] += prepare(block).square().sum()
    return sums.to(dtype)
