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


def check_not_captured(optimizer: str) -> None:
    """Refuse to step while a CUDA graph is captured.

    Replays would copy from staging memory that others use by then, and repeat this step's scalars.

    Raises:
        RuntimeError: the current stream is being captured; nothing was changed.
    """
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            f"{optimizer}.step() can't be captured in a CUDA graph: learning rates and step counts "
            "are on the host, so replays would repeat one step. Capture forward and backward, and "
            "call step() outside the graph"
        )


def uploaded(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a new tensor on ``device`` that holds what ``host`` does."""
    target = torch.empty(host.shape, dtype=host.dtype, device=device)
    upload_(target, host)
    return target


def record_stream(tensor: torch.Tensor, stream: Any) -> None:
    """Have a tensor's memory outlive what ``stream`` does with it by now."""
    if tensor.device.type != "cpu":
        tensor.record_stream(stream)


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
