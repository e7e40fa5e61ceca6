"""Rounds float32 to 16 bits, by integer arithmetic on the bits (kernel contract, section 8)."""

import triton
import triton.language as tl


@triton.jit
def bits_of(x):
    """Return the int32 bits of float32 x; those of any NaN are the canonical NaN's."""
    return tl.where(x != x, 0x7FC00000, x.to(tl.int32, bitcast=True))


@triton.jit
def from_bfloat16(bits):
    """Return the float32 value of bfloat16 bits, given as int16."""
    return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def from_float16(bits):
    """Return the float32 value of float16 bits, given as int16."""
    return bits.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def widen(bits, DTYPE: tl.constexpr):
    """Return the float32 value of 16-bit storage, given as int16."""
    if DTYPE == tl.bfloat16:
        return from_bfloat16(bits)
    else:
        return from_float16(bits)


@triton.jit
def nearest(x, DTYPE: tl.constexpr):
    """Return the bits of x rounded to nearest even, as int16."""
    if DTYPE == tl.bfloat16:
        bits = bits_of(x)
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).to(tl.int16)
    else:
        rounded = x.to(tl.float16).to(tl.int16, bitcast=True)
        return tl.where(x != x, 0x7E00, rounded).to(tl.int16)


@triton.jit
def master_shown(x, DTYPE: tl.constexpr):
    """Return the bits of the parameter that stands for a master: its rounding, as int16."""
    if DTYPE == tl.bfloat16:
        return ((bits_of(x) + 0x8000) >> 16).to(tl.int16)
    else:
        return nearest(x, DTYPE)


@triton.jit
def stochastic(x, r, DTYPE: tl.constexpr):
    """Return the bits of x rounded up or down at random, as int16; r is int32 in [0, 65536)."""
    if DTYPE == tl.bfloat16:
        return ((bits_of(x) + r) >> 16).to(tl.int16)
    else:
        return _stochastic_float16(x, r)


@triton.jit
def _stochastic_float16(x, r):
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # 13 bits are lost and the exponent's bias falls by 112; 0x7c00 is infinity.
    normal = tl.minimum(((magnitude + (r >> 3)) >> 13) - (112 << 10), 0x7C00)
    # Below 2^-14 a result is a multiple of 2^-24: significand >> s says which.
    exponent = tl.maximum(magnitude >> 23, 1)
    significand = magnitude - ((exponent - 1) << 23)  # with its implicit bit
    s = 126 - exponent
    near = (significand + (r >> tl.maximum(16 - s, 0))) >> tl.minimum(tl.maximum(s, 0), 16)
    far = ((significand >> tl.minimum(tl.maximum(s - 16, 0), 24)) + r) >> 16
    subnormal = tl.where(s <= 16, near, far)
    rounded = tl.where(magnitude < 0x38800000, subnormal, normal) | ((bits >> 16) & 0x8000)
    return tl.where(x != x, 0x7E00, rounded).to(tl.int16)


@triton.jit
def random_halves(group, lane, step, word, seed_low, seed_high):
    """Return 16 random bits per element, as int32: half ``lane`` of Philox block ``group``.

    Args:
        group: element // 8, int64; ``[n, 1]``, or ``[n, 8]`` where elements are in any order.
        lane: element % 8, int32; ``[1, 8]`` or ``[n, 8]``.
        step: the parameter's step count, uint32.
        word: its number and the stream, the last word of the counter, uint32.
        seed_low: low half of the seed.
        seed_high: high half of the seed.
    """
    c0 = group.to(tl.uint32)
    c1 = (group >> 32).to(tl.uint32)
    c2 = step + tl.zeros_like(c0)
    c3 = word + tl.zeros_like(c0)
    k0 = seed_low.to(tl.uint32, bitcast=True)
    k1 = seed_high.to(tl.uint32, bitcast=True)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low0 = c0 * 0xD2511F53
        low1 = c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    pair = lane >> 1
    chosen = tl.where(pair == 0, c0, tl.where(pair == 1, c1, tl.where(pair == 2, c2, c3)))
    return ((chosen >> ((lane & 1) * 16).to(tl.uint32)) & 0xFFFF).to(tl.int32)
