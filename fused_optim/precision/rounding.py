"""Rounds float32 to 16 bits, by integer arithmetic on the bits (kernel contract, section 8).

Bit patterns are int32 tensors. A right shift copies the sign, so only low bits of it are used.
"""

from __future__ import annotations

import math

import torch

_LOW_32 = 0xFFFFFFFF

PARAM_STREAM = 0
MOMENT_STREAMS = (1, 2, 3)  # exp_avg, exp_avg_sq, max_exp_avg_sq


def bits_of(x: torch.Tensor) -> torch.Tensor:
    """Return the int32 bits of float32 ``x``; those of any NaN are the canonical NaN's."""
    # Python's NaN has the bits 0x7fc00000. Putting it in takes one pass; masks are much slower.
    x = torch.nan_to_num(x.contiguous(), nan=math.nan, posinf=math.inf, neginf=-math.inf)
    return x.view(torch.int32)


def _bf16_from_high_half(bits: torch.Tensor) -> torch.Tensor:
    """Return the high halves of ``bits`` as bfloat16 numbers; ``bits`` are overwritten."""
    return bits.bitwise_right_shift_(16).to(torch.int16).view(torch.bfloat16)


def round_half_away(x: torch.Tensor) -> torch.Tensor:
    """Round float32 ``x`` to bfloat16, ties away from zero. Result and low half determine ``x``."""
    return _bf16_from_high_half(bits_of(x).add_(0x8000))


def round_stochastic(x: torch.Tensor, dtype: torch.dtype, r: torch.Tensor) -> torch.Tensor:
    """Round float32 ``x`` up or down to ``dtype``, with the probabilities that keep the mean.

    Args:
        x: float32, any shape.
        dtype: bfloat16 or float16.
        r: int32 of x's shape, uniform in [0, 65536).
    """
    if dtype is torch.bfloat16:
        return _bf16_from_high_half(bits_of(x).add_(r))
    return _round_stochastic_fp16(x, r)


def _round_stochastic_fp16(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    magnitude = bits_of(x) & 0x7FFFFFFF
    normal = ((magnitude + (r >> 3)) & ~0x1FFF).view(torch.float32)
    normal = torch.where(normal >= 65536.0, torch.inf, normal)  # NaN compares false and stays

    # Below 2^-14 a result is a multiple of 2^-24: M >> s says which.
    exponent = (magnitude >> 23).clamp(min=1)
    significand = magnitude - ((exponent - 1) << 23)  # with its implicit bit
    s = 126 - exponent
    near = (significand + (r >> (16 - s).clamp(min=0))) >> s.clamp(max=16)
    far = ((significand >> (s - 16).clamp(0, 24)) + r) >> 16
    subnormal = torch.where(s <= 16, near, far).to(torch.float32) * 2.0**-24

    rounded = torch.where(magnitude < 0x38800000, subnormal, normal)
    return torch.copysign(rounded, x).to(torch.float16)


def random_halves(
    first: int, shape: torch.Size, seed: int, step: int, stream: int, device: torch.device
) -> torch.Tensor:
    """Return the 16 random bits of consecutive elements, as int32 of ``shape``.

    A pure function of its arguments: the same on every replica, device and shard.

    Args:
        first: logical index of the first element.
        shape: of the result, in row-major element order.
        seed: 64 bits.
        step: the parameter's step count.
        stream: the counter's last word, ``number | stream id << 28``.
        device: where the result lives.
    """
    numel = shape.numel()
    start = first // 8
    groups = torch.arange(start, (first + numel + 7) // 8, dtype=torch.int64, device=device)
    words = _philox4x32(groups, step & _LOW_32, stream, seed & _LOW_32, (seed >> 32) & _LOW_32)
    # Little-endian, the int16 halves of the words lie in the order of the elements.
    halves = words.view(torch.int16).view(-1)
    offset = first - 8 * start
    return halves[offset : offset + numel].to(torch.int32).bitwise_and_(0xFFFF).view(shape)


def random_halves_at(elements: torch.Tensor, seed: int, step: int, stream: int) -> torch.Tensor:
    """Return the random bits of elements in any order, int32 of their shape.

    Args:
        elements: logical indices, int64 ``[elements]``. Runs of consecutive ones cost least.
        seed: and what follows it, as for `random_halves`.
        step: the parameter's step count.
        stream: the counter's last word.
    """
    groups, at = torch.unique_consecutive(elements >> 3, return_inverse=True)
    words = _philox4x32(groups, step & _LOW_32, stream, seed & _LOW_32, (seed >> 32) & _LOW_32)
    halves = words.view(torch.int16).view(-1)[at * 8 + (elements & 7)]
    return halves.to(torch.int32).bitwise_and_(0xFFFF)


def _philox4x32(groups: torch.Tensor, step: int, stream: int, key0: int, key1: int) -> torch.Tensor:
    """Return ``[groups, 4]``: ten rounds of Philox4x32 (Salmon et al., SC 2011).

    A word is the low half of an int64. The high half matters to products alone, and is cleared
    before each of them. The low 64 bits of a product are the same signed and unsigned, so int64
    may overflow here.
    """
    c0, c1 = groups & _LOW_32, groups >> 32
    c2, c3 = torch.full_like(groups, step), torch.full_like(groups, stream)
    for _ in range(10):
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0 = (product1 >> 32).bitwise_xor_(c1).bitwise_xor_(key0).bitwise_and_(_LOW_32)
        c2 = (product0 >> 32).bitwise_xor_(c3).bitwise_xor_(key1).bitwise_and_(_LOW_32)
        c1, c3 = product1, product0
        key0, key1 = (key0 + 0x9E3779B9) & _LOW_32, (key1 + 0xBB67AE85) & _LOW_32
    return torch.stack([word.to(torch.int32) for word in (c0, c1, c2, c3)], dim=1)
