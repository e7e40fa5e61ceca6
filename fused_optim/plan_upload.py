"""Getting packed tables onto a device: staging copies and the constants that stand for absence."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch

uploads = 0
"""Copies to a device made so far; tests read it to see that a steady step makes few."""


def upload_(target: torch.Tensor, host: torch.Tensor) -> None:
    """Copy ``host`` into ``target`` on the current stream, without waiting for it.

    The staging memory is fresh for every copy. torch's pinned allocator hands it out again only
    when the copy is done: a non-blocking copy leaves an event on it.
    """
    global uploads
    uploads += 1
    if target.device.type == "cpu":
        target.copy_(host)
    else:
        target.copy_(host.pin_memory(), non_blocking=True)


def uploaded(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a new tensor on ``device`` that holds what ``host`` does."""
    target = torch.empty(host.shape, dtype=host.dtype, device=device)
    upload_(target, host)
    return target


@functools.cache
def constant(value: float, device: torch.device) -> torch.Tensor:
    """Return a float32 ``[1]`` tensor of ``value``, the same one at every call."""
    return torch.full((1,), value, dtype=torch.float32, device=device)


def device_guard(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which launches go to ``device``, on its current stream."""
    if device.type == "cuda":
        return torch.cuda.device(device)
    if device.type == "xpu":
        return torch.xpu.device(device)
    return contextlib.nullcontext()
