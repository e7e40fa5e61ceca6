"""Copies packed tables to a device, and keeps the constants that stand for absent arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

uploads = 0
"""How many copies to a device were made; tests read that a steady step makes few."""

STAGING_UNIT = 64
"""Bytes. Pieces of the memory that is reserved for captures begin at multiples of this."""

_reserve: list[torch.Tensor] = []  # pinned, for the next capture: one block, or none yet
_captured: list[
    torch.Tensor
] = []  # pinned, read by CUDA graphs: fused_optim/plan/capture.py, note: [capture]


def capturing() -> bool:
    """Return whether the current stream is being captured into a CUDA graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def upload_(target: torch.Tensor, host: torch.Tensor) -> None:
    """Copy ``host`` into ``target`` on the current stream, without waiting for it.

    Every copy has staging memory of its own. A non-blocking copy leaves an event on that memory,
    and torch's pinned allocator hands it out again only when the copy is done. A captured copy
    reads its staging memory at each replay, so such memory is never given back.
    """
    global uploads
    uploads += 1
    if capturing():
        target.copy_(_staged_for_ever(host), non_blocking=True)
    elif target.device.type == "cpu":
        target.copy_(host)
    else:
        target.copy_(host.pin_memory(), non_blocking=True)


def reserve_for_capture(numbytes: int) -> None:
    """Have pinned memory ready for a capture, in which none can be allocated."""
    if all(block.numel() < numbytes for block in _reserve):
        pins = torch.cuda.is_initialized()
        _reserve[:] = [torch.empty(numbytes, dtype=torch.uint8, device="cpu", pin_memory=pins)]


def _staged_for_ever(host: torch.Tensor) -> torch.Tensor:
    """Return a copy of ``host`` in reserved memory, which is kept for ever."""
    if not _reserve or _reserve[0].numel() < host.nbytes:
        raise RuntimeError(
            "there is no pinned memory for the tables of a captured step; run a step of the same "
            "optimizer on a side stream before each capture"
        )
    units = -(-host.nbytes // STAGING_UNIT)
    taken = _reserve[0][: host.nbytes]
    _reserve[0] = _reserve[0][units * STAGING_UNIT :]
    _captured.append(taken)
    return taken.view(host.dtype).view(host.shape).copy_(host)


def uploaded(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a new tensor on ``device`` with the values of ``host``."""
    target = torch.empty(host.shape, dtype=host.dtype, device=device)
    upload_(target, host)
    return target


def fetched(flag: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begin to copy a tensor to the host; return what waits for the copy, and for nothing later."""
    host = torch.empty(flag.shape, dtype=flag.dtype, pin_memory=True)
    host.copy_(flag, non_blocking=True)
    event = torch.get_device_module(flag.device).Event()
    event.record()

    def wait() -> torch.Tensor:
        event.synchronize()
        return host

    return wait


def record_stream(tensor: torch.Tensor, stream: Any) -> None:
    """Keep a tensor's memory until ``stream`` has done the work that it was given so far."""
    if tensor.device.type != "cpu":
        tensor.record_stream(stream)


def constant(value: float, device: torch.device) -> torch.Tensor:
    """Return a float32 ``[1]`` tensor of ``value``: always the same one, except in captures."""
    return (_constant.__wrapped__ if capturing() else _constant)(value, device)


@functools.cache
def _constant(value: float, device: torch.device) -> torch.Tensor:
    return torch.full((1,), value, dtype=torch.float32, device=device)


def value(given: torch.Tensor | None, otherwise: torch.Tensor) -> torch.Tensor:
    """Return an argument as kernels read it: float32 on the device of its stand-in."""
    if given is None:
        return otherwise
    return given.to(device=otherwise.device, dtype=torch.float32).contiguous()


def signed(word: int) -> int:
    """Return the int32 that has the bits of a uint32."""
    return word - (1 << 32) if word >= 1 << 31 else word
