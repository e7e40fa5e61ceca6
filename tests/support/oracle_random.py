"""Philox random bits and the stochastic rounding that is built on them.

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011), section 3.3 and
table 2 for Philox4x32-10; its constants are those of the authors' Random123 library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from oracle_rounding import F32, NAN_BITS, U16, bits

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF

STREAMS = {"param": 0, "exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 3}
"""Stream of each tensor, so that a parameter and its moments are rounded independently."""


def philox4x32(
    counter: Sequence[ArrayLike], key: tuple[int, int], rounds: int = 10
) -> list[NDArray[np.uint64]]:
    """Return the four 32-bit words of Philox4x32, as uint64.

    Args:
        counter: four 32-bit words, numbers or arrays that broadcast.
        key: two 32-bit words.
        rounds: 10 for the standard generator.
    """
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = key
    low, half = np.uint64(LOW), np.uint64(32)
    for _ in range(rounds):
        product0, product1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c2 = (product1 >> half) ^ c1 ^ np.uint64(k0), (product0 >> half) ^ c3 ^ np.uint64(k1)
        c1, c3 = product1 & low, product0 & low
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return [np.asarray(word) for word in (c0, c1, c2, c3)]


@dataclass(frozen=True)
class Random:
    """Where a tensor's random bits come from.

    Attributes:
        seed: 64 bits.
        step: the parameter's step count after this step.
        number: the parameter's number in state_dict order, below 2**28.
        first_element: index of the tensor's first element in the unsharded tensor.
    """

    seed: int = 0
    step: int = 1
    number: int = 0
    first_element: int = 0

    def bits16(self, shape: tuple[int, ...], stream: int) -> U16:
        """Return 16 random bits per element, elements numbered in row-major order.

        One Philox block serves eight elements: element e takes half e % 8 of the block's four
        words, the low half of a word first. Thus an element's bits depend on its index alone.
        """
        count = int(np.prod(shape, dtype=np.int64))
        element = self.first_element + np.arange(count, dtype=np.uint64)
        block = element // np.uint64(8)
        counter = (
            block & np.uint64(LOW),
            block >> np.uint64(32),
            self.step & LOW,
            self.number | stream << 28,
        )
        words = philox4x32(counter, (self.seed & LOW, self.seed >> 32 & LOW))
        half = (element % np.uint64(8)).astype(np.int64)
        word = np.choose(half // 2, [np.broadcast_to(w, element.shape) for w in words])
        shift = (16 * (half % 2)).astype(np.uint64)
        return ((word >> shift) & np.uint64(0xFFFF)).astype(np.uint16).reshape(shape)


def round_stochastic(x: F32, r16: U16, dtype: str) -> U16:
    """Round towards the neighbour in random direction: up with the probability of the rest.

    Adding random bits below the kept ones and truncating carries exactly that often. Both formats
    are sign and magnitude, so this rounds magnitudes. Representable values and infinities have no
    bits below and never move.

    Args:
        x: float32 values.
        r16: 16 random bits for each.
        dtype: "bfloat16" or "float16".
    """
    pattern, random = bits(x).astype(np.int64), np.asarray(r16, np.int64)
    if dtype == "bfloat16":
        rounded = (pattern + random) >> 16
    else:
        rounded = _round_stochastic_fp16(pattern, random)
    return np.where(np.isnan(x), NAN_BITS[dtype], rounded).astype(np.uint16)


def _round_stochastic_fp16(
    pattern: NDArray[np.int64], random: NDArray[np.int64]
) -> NDArray[np.int64]:
    sign, magnitude = pattern >> 31 << 15, pattern & 0x7FFFFFFF
    exponent = magnitude >> 23

    # Normal results (|x| >= 2**-14) lose 13 bits; 112 is the difference of the exponent biases.
    normal = ((magnitude + (random >> 3)) >> 13) - (112 << 10)
    normal = np.minimum(normal, 0x7C00)

    # Subnormal results count units of 2**-24: 13 bits are lost and one more per binade below.
    significand = np.where(exponent > 0, magnitude & 0x7FFFFF | 0x800000, magnitude & 0x7FFFFF)
    shift = 13 + 113 - np.maximum(exponent, 1)
    scaled = np.where(
        shift <= 16, random >> np.maximum(16 - shift, 0), random << np.clip(shift - 16, 0, 40)
    )
    subnormal = np.where(shift > 40, 0, (significand + scaled) >> np.clip(shift, 0, 40))
    return sign | np.where(exponent >= 113, normal, subnormal)
