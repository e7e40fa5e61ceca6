"""Rounding float32 to 16 bits, by integer arithmetic on the bits (kernel contract, section 8).

Bit patterns travel as int32 tensors, whose shifts are arithmetic: the low 16 bits are what counts.
"""

from __future__ import annotations

import torch

_NAN_BITS = 0x7FC00000  # the float32 whose high half is bfloat16's quiet NaN, 0x7fc0

PARAM_STREAM = 0
MOMENT_STREAMS = (1, 2, 3)  # exp_avg, exp_avg_sq, max_exp_avg_sq


def bits_of(x: torch.Tensor) -> torch.Tensor:
    """Return the int32 bits of float32 ``x``, every NaN made the canonical one first."""
    bits = x.contiguous().view(torch.int32)
    return torch.where(torch.isnan(x), _NAN_BITS, bits)


def bf16_from_high_half(bits: torch.Tensor) -> torch.Tensor:
    """Return the bfloat16 tensor whose bits are the high halves of int32 ``bits``."""
    return (bits >> 16).to(torch.int16).view(torch.bfloat16)


def round_half_away(x: torch.Tensor) -> torch.Tensor:
    """Round float32 ``x`` to bfloat16, ties away from zero. With the low half, a bijection."""
    return bf16_from_high_half(bits_of(x) + 0x8000)


def round_stochastic(x: torch.Tensor, dtype: torch.dtype, r: torch.Tensor) -> torch.Tensor:
    """Round float32 ``x`` to ``dtype``, up with the probability that keeps the mean.

    Args:
        x: float32, any shape.
        dtype: bfloat16 or float16.
        r: int32 of x's shape, uniform in [0, 65536).
    """
    if dtype is torch.bfloat16:
        return bf16_from_high_half(bits_of(x) + r)
    return _round_stochastic_fp16(x, r)


def _round_stochastic_fp16(x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    magnitude = bits_of(x) & 0x7FFFFFFF
    normal = ((magnitude + (r >> 3)) & ~0x1FFF).view(torch.float32)
    normal = torch.where(normal >= 65536.0, torch.inf, normal)  # NaN compares false and stays

    # Below 2^-14 results are multiples of 2^-24: M >> s counts them.
    exponent = (magnitude >> 23).clamp(min=1)
    significand = magnitude - ((exponent - 1) << 23)  # implicit bit included
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
    counter = [groups & 0xFFFFFFFF, groups >> 32, step & 0xFFFFFFFF, stream]
    words = _philox4x32(counter, seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    halves = torch.stack([half for w in words for half in (w & 0xFFFF, w >> 16)], dim=1)
    offset = first - 8 * start
    return halves.view(-1)[offset : offset + numel].to(torch.int32).view(shape)


def _philox4x32(counter: list, key0: int, key1: int) -> list[torch.Tensor]:
    """Ten rounds of Philox4x32 (Salmon et al., SC 2011) on words held in int64."""
    c0, c1, c2, c3 = counter
    for _ in range(10):
        high0, low0 = _multiply_32(0xD2511F53, c0)
        high1, low1 = _multiply_32(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def _multiply_32(a: int, b: torch.Tensor | int) -> tuple:
    """Return the high and low words of a 32 by 32 bit product, int64 overflow avoided."""
    upper, lower = a * (b >> 16), a * (b & 0xFFFF)  # each below 2^48
    total = upper + (lower >> 16)
    return total >> 16, ((total & 0xFFFF) << 16) | (lower & 0xFFFF)
