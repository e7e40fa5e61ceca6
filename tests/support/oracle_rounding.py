"""Rounding of float32 to 16 bits, and the codes that keep what rounding drops, on numpy bits.

Values of 16-bit dtypes are uint16 bit patterns throughout; `dtype` arguments are "bfloat16" or
"float16". A NaN is made canonical before any integer arithmetic: rounding carries out of its
significand otherwise, and 0x7fffffff would come out as minus zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U32 = NDArray[np.uint32]
U16 = NDArray[np.uint16]
I16 = NDArray[np.int16]

NAN_BITS = {"bfloat16": np.uint16(0x7FC0), "float16": np.uint16(0x7E00)}


def bits(x: F32) -> U32:
    """Return the bit patterns of float32 values."""
    return np.atleast_1d(np.asarray(x, np.float32)).view(np.uint32).reshape(np.shape(x))


def from_bits(pattern: U32) -> F32:
    """Return the float32 values of bit patterns."""
    pattern = np.asarray(pattern, np.uint32)
    return np.atleast_1d(pattern).view(np.float32).reshape(pattern.shape)


def widen(stored: U16, dtype: str) -> F32:
    """Return the float32 values of 16-bit patterns; exact."""
    stored = np.asarray(stored, np.uint16)
    if dtype == "bfloat16":
        return from_bits(stored.astype(np.uint32) << 16)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.atleast_1d(stored).view(np.float16).reshape(stored.shape).astype(np.float32)


def round_nearest(x: F32, dtype: str) -> U16:
    """Round to nearest, ties to even (IEEE 754 roundTiesToEven); overflow gives infinity."""
    x = np.asarray(x, np.float32)
    if dtype == "bfloat16":
        pattern = bits(x)
        rounded = (pattern + (0x7FFF + ((pattern >> 16) & 1))) >> 16
    else:
        with np.errstate(all="ignore"):
            rounded = np.atleast_1d(x.astype(np.float16)).view(np.uint16).reshape(x.shape)
    return np.where(np.isnan(x), NAN_BITS[dtype], rounded).astype(np.uint16)


def round_half_away(x: F32) -> U16:
    """Round to bfloat16, ties away from zero: the rounding `split_encode` can invert."""
    return np.where(np.isnan(x), NAN_BITS["bfloat16"], (bits(x) + 0x8000) >> 16).astype(np.uint16)


def show_master(x: F32, dtype: str) -> U16:
    """Return the parameter that a float32 master stands behind.

    Half away for bfloat16, so that `split_encode` shows the same parameter bit for bit; float16
    has no such code and rounds to even.
    """
    return round_half_away(x) if dtype == "bfloat16" else round_nearest(x, dtype)


def split_encode(x: F32) -> tuple[U16, I16]:
    """Split float32 into a bfloat16 and a signed remainder: bits = (high << 16) + remainder."""
    remainder = np.where(np.isnan(x), 0, bits(x) & 0xFFFF).astype(np.uint16)
    return round_half_away(x), np.atleast_1d(remainder).view(np.int16).reshape(np.shape(x))


def split_decode(high: U16, remainder: I16) -> F32:
    """Invert `split_encode`.

    No float32 encodes to a zero with a negative remainder, so that pair tells of a parameter that
    somebody zeroed since: the remainder is dropped (taken as written it would decode to NaN). So it
    is for an infinity with a positive one.
    """
    high, remainder = np.asarray(high, np.uint16), np.asarray(remainder, np.int16)
    magnitude = high & 0x7FFF
    stale = ((remainder < 0) & (magnitude == 0)) | ((remainder > 0) & (magnitude == 0x7F80))
    remainder = np.where(stale, 0, remainder)
    return from_bits(((high.astype(np.int64) << 16) + remainder).astype(np.uint32))


@np.errstate(all="ignore")
def kahan_encode(x: F32, dtype: str) -> tuple[U16, U16]:
    """Round ``x`` to nearest and return the parameter with its compensation, in its own dtype.

    Where rounding the rest x - p puts the compensation on the exact midpoint of two parameters, and
    p is the odd one, p + c would round to the neighbour and `kahan_decode` would take p as written
    from outside. Losing half a step there is not rare: under a constant drift a parameter falls
    back from every approach and stays where it is. So the compensation takes one step towards
    zero, which keeps the code consistent: p + c always rounds to p.
    """
    x = np.asarray(x, np.float32)
    p = round_nearest(x, dtype)
    value = widen(p, dtype)
    c = np.where(np.isfinite(value), round_nearest(x - value, dtype), 0).astype(np.uint16)
    midpoint = (round_nearest(value + widen(c, dtype), dtype) != p) & ((c & 0x7FFF) != 0)
    return p, np.where(midpoint, c - 1, c).astype(np.uint16)


@np.errstate(all="ignore")
def kahan_decode(p: U16, c: U16, dtype: str) -> F32:
    """Return p + c, or p where that sum does not round to the bits of p: p was written since.

    Bits rather than values are compared because -0.0 + 0.0 is +0.0, and a parameter of -0.0 that no
    update moves must stay one.
    """
    total = widen(p, dtype) + widen(c, dtype)
    return np.where(round_nearest(total, dtype) == p, total, widen(p, dtype))


def master_decode(p: U16, master: F32, dtype: str) -> F32:
    """Return the master, or p where the master no longer shows as the bits of p."""
    return np.where(show_master(master, dtype) == p, master, widen(p, dtype)).astype(np.float32)
