"""Moments in 8 bits an element: blocks of 256 codes, each block with a scale of its own.

A second moment, never negative, is coded by its bits, which as an integer go with its logarithm:
code 255 is the largest value of the block, rounded up to 15 bits of fraction; each code below is
``2**shift`` less, an eighth of an octave or finer, by what the block spans; and code 0 is an exact
zero. An Adam's first moment is coded linearly, in units of the power of two at or below the root of
its second moment, so that what is rounded is the update and not the moment. Adafactor's, a mean of
updates, is coded in units of 1. All are rounded stochastically, because moments decay by less than
a step. What codes stand for is coded again without change, whatever is drawn.

A block is stored as a record of 260 bytes: 256 codes, then the scale, a little-endian word. That of
a second moment is the bits of its largest value, with the shift in the low 8 of them; that of a
first moment is the float32 that one code stands for. A block has 256 elements that follow each
other in memory.
"""

from __future__ import annotations

import torch

BLOCK, RECORD = 256, 260
"""Elements of a block, and bytes of its record."""

_INFINITY, _SPOILED = 0x7F800000, 0x7FC00008
_SHIFTS = range(8, 21)  # of a second moment: a code is 2**shift of a float's bits
_CODES = 254  # from the largest value of a block down to the smallest but zero
_LARGEST = 127  # code of a first moment


def in_blocks(values: torch.Tensor) -> torch.Tensor:
    """Return a tensor's elements as ``[blocks, 256]``, the last block filled up with zeros."""
    flat = values.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)


def _split(records: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes of records ``[blocks, 260]``, and the bits of their scales."""
    return records[:, :BLOCK], records[:, BLOCK:].contiguous().view(torch.int32)


def _joined(codes: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Return records of codes (of one byte each) and of the bits of scales, int32 or float32."""
    return torch.cat([codes.view(torch.uint8), words.contiguous().view(torch.uint8)], 1)


def decode_second(records: torch.Tensor) -> torch.Tensor:
    """Return the second moments of records ``[blocks, 260]``: float32 ``[blocks, 256]``."""
    codes, words = _split(records)
    largest, shift = words & ~0xFF, words & 0x1F
    codes = codes.to(torch.int32)
    bits = (largest - ((255 - codes) << shift)).masked_fill_(codes == 0, 0)
    return bits.masked_fill_(largest >= _INFINITY, 0x7FC00000).view(torch.float32)


def encode_second(values: torch.Tensor, random: torch.Tensor) -> torch.Tensor:
    """Return records ``[blocks, 260]`` of second moments.

    A value below what the codes of its block reach, 31.75 octaves, becomes the least of them: it
    must not become zero, of which the root is a divisor. A block with an infinity or a NaN is one
    of NaNs.

    Args:
        values: float32 ``[blocks, 256]``, not negative.
        random: int32 of the same shape, uniform in [0, 65536).
    """
    bits = values.contiguous().view(torch.int32) & 0x7FFFFFFF
    top = bits.amax(1, keepdim=True)
    largest = (top + 0xFF) & ~0xFF
    least = torch.where(bits == 0, top, bits).amin(1, keepdim=True)
    span = largest - least
    shift = torch.full_like(span, _SHIFTS[0])
    for one in _SHIFTS[:-1]:
        shift += span > _CODES << one
    down = torch.minimum(largest - bits, _CODES << shift)
    up, back = (shift - 16).clamp(min=0), (16 - shift).clamp(min=0)
    dither = random << up >> back
    lowest = ((largest - 1) >> shift).clamp_(max=_CODES)  # no code stands for less than zero
    codes = 255 - torch.minimum((down + dither) >> shift, lowest)
    spoiled = top >= _INFINITY
    codes = codes.masked_fill_(bits == 0, 0).masked_fill_(spoiled, 255).to(torch.uint8)
    return _joined(codes, torch.where(spoiled, _SPOILED, largest | shift))


def _times_units(values: torch.Tensor, second: torch.Tensor | None, sign: int) -> torch.Tensor:
    """Return values times their units, or for a ``sign`` of -1 divided by them: exactly."""
    if second is None:
        return values
    half = ((second.view(torch.int32) >> 23) + 127 >> 1) - 127  # of the exponent, rounded down
    return values * (127 + sign * half << 23).view(torch.float32)


def decode_first(records: torch.Tensor, second: torch.Tensor | None) -> torch.Tensor:
    """Return the first moments of records ``[blocks, 260]``: float32 ``[blocks, 256]``.

    Args:
        records: of the first moments.
        second: what `decode_second` made of the second moments, or None for a unit of 1.
    """
    codes, words = _split(records)
    values = codes.view(torch.int8).to(torch.float32) * words.view(torch.float32)
    return _times_units(values, second, 1)


def encode_first(
    values: torch.Tensor, second: torch.Tensor | None, random: torch.Tensor
) -> torch.Tensor:
    """Return records ``[blocks, 260]`` of first moments.

    Args:
        values: float32 ``[blocks, 256]``.
        second: what the records of the second moments stand for, as `decode_second` returns it; or
            None for a unit of 1.
        random: int32 of the same shape, uniform in [0, 65536); the high 8 of 16 bits are used.
    """
    units = _times_units(values, second, -1)
    magnitude = units.abs()
    top = magnitude.amax(1, keepdim=True)
    # 17 bits, so that the product with a code of 7 bits is exact.
    step = (((top / _LARGEST).view(torch.int32) + 0x7F) & ~0x7F).view(torch.float32)
    step = torch.where(top.isfinite(), step, torch.nan)
    dither = ((random >> 8).to(torch.float32) + 0.5) * 2.0**-8
    quotient = magnitude * torch.where(step > 0.0, 1.0 / step, 0.0)
    codes = (quotient + dither).floor_().nan_to_num_(0.0).clamp_(max=_LARGEST)
    return _joined(torch.copysign(codes, units).to(torch.int8), step)
