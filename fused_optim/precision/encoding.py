"""Moves tensors between their storage and the registers of the update math.

Tensors are walked in blocks that fit in cache, so a step's temporaries stay small whatever the
parameter's size. A block is a view: writing to it writes to the tensor.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch

from fused_optim.distributed import geometry

from . import rounding

# Elements per block. On a CPU the registers of a block fit in the last cache, and its operators
# take longer than Python. Elsewhere larger blocks save kernel launches.
_BLOCK = {"cpu": 1 << 19}
_BLOCK_ELSEWHERE = 1 << 22


def block_size(device: torch.device) -> int:
    """Return how many elements of a tensor on ``device`` make up a block."""
    return _BLOCK.get(device.type, _BLOCK_ELSEWHERE)


def blocks(
    tensors: Sequence[torch.Tensor | None],
) -> Iterator[tuple[int, list[torch.Tensor | None]]]:
    """Yield (logical index of the first element, matching blocks) of equally shaped tensors.

    Tensors may have any strides. None stays None, but the first tensor can't be None.
    """
    shape, device = tensors[0].shape, tensors[0].device
    if shape.numel() == 0:
        return
    if all(t is None or t.is_contiguous() for t in tensors):
        tensors = [None if t is None else t.view(-1) for t in tensors]
        dim, length = 0, shape.numel()
    else:
        dim = next(d for d, size in enumerate(shape) if size > 1)
        length = shape[dim]
    inner = shape.numel() // length
    step = max(1, block_size(device) // inner)
    for start in range(0, length, step):
        size = min(step, length - start)
        yield (
            start * inner,
            [None if t is None else t.narrow(dim, start, size) for t in tensors],
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Draw:
    """The source of one parameter's random bits in one step."""

    seed: int
    step: int
    number: int
    shard: geometry.Shard | None  # where the parameter lies in the whole

    def halves(self, stream: int, first: int, block: torch.Tensor) -> torch.Tensor:
        """Return 16 random bits per element of ``block``, which starts at element ``first``."""
        word, shard = self.number | stream << 28, self.shard
        key = (self.seed, self.step, word)
        if shard is None or shard.in_order:
            first += 0 if shard is None else shard.first_element
            return rounding.random_halves(first, block.shape, *key, block.device)
        elements = shard.elements(first, block.numel(), block.device)
        return rounding.random_halves_at(elements, *key).view(block.shape)


def decode(param: torch.Tensor, extra: torch.Tensor | None, mode: str) -> torch.Tensor:
    """Return the value of a parameter block in math dtype; in mode "none", the block itself.

    What was written to ``param`` from outside wins over ``extra``, element by element.
    """
    if mode == "none":
        return param
    if mode == "kahan":
        value = param.float().add_(extra.float())
        return _unless_overwritten(value, value.to(param.dtype), param)
    if mode == "split":
        high = param.contiguous().view(torch.int16).to(torch.int32).bitwise_left_shift_(16)
        value = high.add_(extra.view(torch.int16)).view(torch.float32)
        if not _surely_finite(value):
            # No float32 value has such a pair. The remainder is that of a value overwritten since.
            value = torch.where(torch.isnan(value), param.float(), value)
        return value
    if mode == "master":
        return _unless_overwritten(extra, round_master(extra, param.dtype), param)
    return param.float()


def _unless_overwritten(
    value: torch.Tensor, shown: torch.Tensor, param: torch.Tensor
) -> torch.Tensor:
    """Return ``value`` where the parameter equals its rounding, ``shown``; else the parameter."""
    same = [t.contiguous().view(torch.int16) for t in (shown, param)]
    if param.device.type == "cpu" and torch.equal(*same):
        return value
    return torch.where(torch.eq(*same), value, param.float())


def _surely_finite(x: torch.Tensor) -> bool:
    """Return whether ``x`` is known to have no NaN; False where finding out is expensive.

    Masks take a CPU longer than the arithmetic around them. For a device's answer the host would
    have to wait.
    """
    return x.device.type == "cpu" and math.isfinite(x.sum())


def encode_(
    param: torch.Tensor,
    extra: torch.Tensor | None,
    value: torch.Tensor,
    mode: str,
    draw: Draw,
    first: int,
) -> None:
    """Store ``value`` in a parameter block and its extra state; the inverse of `decode`."""
    if mode == "none":
        if value is not param:
            param.copy_(value)
    elif mode == "stochastic":
        r = draw.halves(rounding.PARAM_STREAM, first, param)
        param.copy_(rounding.round_stochastic(value, param.dtype, r))
    elif mode == "kahan":
        param.copy_(value)
        extra.copy_(_compensation(param, value))
    elif mode == "split":
        extra.view(torch.int16).copy_(rounding.bits_of(value).to(torch.int16))
        param.copy_(rounding.round_half_away(value))
    elif mode == "master":
        extra.copy_(value)
        param.copy_(round_master(value, param.dtype))
    else:
        param.copy_(value)


def _compensation(shown: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return the difference of ``value`` and the 16-bit parameter ``shown``, rounded to 16 bits.

    A compensation that rounds up to half an ulp of the parameter would be a tie, which decoding
    takes for an external write. The next value towards zero is stored instead.
    """
    lost = (value - shown.float()).to(shown.dtype)
    if not _surely_finite(lost):
        lost = torch.where(torch.isfinite(shown), lost, 0.0)
    tie = ~_same_bits((shown.float() + lost.float()).to(shown.dtype), shown) & (lost != 0)
    return (lost.view(torch.int16) - tie.to(torch.int16)).view(shown.dtype)


def round_master(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the parameter of ``dtype`` that stands for a float32 master: its rounding."""
    if dtype is torch.bfloat16:
        return rounding.round_half_away(value)
    return value.to(dtype)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a.contiguous().view(torch.int16) == b.contiguous().view(torch.int16)


def store_moment_(
    moment: torch.Tensor, value: torch.Tensor, stream: int, draw: Draw, first: int
) -> None:
    """Store a moment block: as it is, to nearest (float16), or stochastically (bfloat16)."""
    if value is moment:  # a float32 moment was updated in its storage
        return
    if moment.dtype is torch.bfloat16:
        r = draw.halves(stream, first, moment)
        value = rounding.round_stochastic(value, moment.dtype, r)
    moment.copy_(value)
