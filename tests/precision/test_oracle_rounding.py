"""The rounding and random-number oracles, exhaustively where 16 bits allow it."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from tolerances import assert_same_bits, ulp

DTYPES = ["bfloat16", "float16"]
ALL_16 = np.arange(1 << 16, dtype=np.uint16)
NANS = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF812345], np.uint32)


def float32_patterns(count: int = 200_000) -> np.ndarray:
    """Random bit patterns, so every exponent and NaNs, and the edges of rounding."""
    rng = np.random.default_rng(0)
    edges = [0, 1, 0x7FFF, 0x8000, 0x8001, 0x7FFFFF, 0x800000, 0x38800000, 0x477FE000, 0x477FEFFF]
    edges += [0x477FF000, 0x477FFFFF, 0x47800000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0x7F800000]
    both = np.array([edges, edges], np.uint32) | np.array([[0], [0x80000000]], np.uint32)
    # Ties of both formats, where roundings differ from one another.
    top = rng.integers(0, 1 << 16, 2000, dtype=np.uint32) << 16
    fp16_tie = np.uint32(0x38000000) + (rng.integers(0, 1 << 14, 2000, dtype=np.uint32) << 13)
    random = rng.integers(0, 1 << 32, count, dtype=np.uint32)
    return np.concatenate([both.ravel(), NANS, top | 0x8000, fp16_tie | 0x1000, random])


def widened(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Every 16-bit pattern but NaNs, and its value."""
    values = oracle.widen(ALL_16, dtype)
    return ALL_16[~np.isnan(values)], values[~np.isnan(values)]


# --- rounding to nearest -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_widening_and_rounding_are_torch(dtype: str) -> None:
    stored = torch.from_numpy(ALL_16.view(np.int16)).view(getattr(torch, dtype))
    assert_same_bits(oracle.widen(ALL_16, dtype), stored)
    x = oracle.from_bits(float32_patterns())
    rounded = oracle.widen(oracle.round_nearest(x, dtype), dtype)
    assert_same_bits(rounded, torch.from_numpy(x).to(getattr(torch, dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_becomes_canonical(dtype: str) -> None:
    x = oracle.from_bits(NANS)
    canonical = {"bfloat16": 0x7FC0, "float16": 0x7E00}[dtype]
    r16 = np.full(x.shape, 0xFFFF, np.uint16)
    assert (oracle.round_nearest(x, dtype) == canonical).all()
    assert (oracle.round_stochastic(x, r16, dtype) == canonical).all()
    p, c = oracle.kahan_encode(x, dtype)
    assert (p == canonical).all() and (c == 0).all()
    if dtype == "bfloat16":
        p, remainder = oracle.split_encode(x)
        assert (p == canonical).all() and (remainder == 0).all()
        assert (oracle.round_half_away(x) == canonical).all()


def test_half_away_differs_from_nearest_on_ties_only() -> None:
    pattern = float32_patterns()
    x = oracle.from_bits(pattern)
    away, even = oracle.round_half_away(x), oracle.round_nearest(x, "bfloat16")
    tie = (pattern & 0xFFFF) == 0x8000
    assert (away[~tie] == even[~tie]).all()
    odd_kept = tie & ((pattern >> 16) & 1 == 0) & ~np.isnan(x)
    assert (away[odd_kept] == even[odd_kept] + 1).all() and odd_kept.any()


# --- codes that keep the rest --------------------------------------------------------------------


def test_split_is_a_bijection() -> None:
    pattern = float32_patterns()
    x = oracle.from_bits(pattern)
    p, remainder = oracle.split_encode(x)
    assert remainder.dtype == np.int16
    back = oracle.bits(oracle.split_decode(p, remainder))
    assert (back[~np.isnan(x)] == pattern[~np.isnan(x)]).all()
    assert np.isnan(oracle.from_bits(back[np.isnan(x)])).all()
    assert (p == oracle.show_master(x, "bfloat16")).all()


def test_split_ignores_a_stale_remainder_of_a_zeroed_parameter() -> None:
    zeros = np.array([0, 0x8000], np.uint16)
    decoded = oracle.split_decode(zeros, np.array([-5, -0x8000], np.int16))
    assert oracle.bits(decoded).tolist() == [0, 0x80000000]


@pytest.mark.parametrize("dtype", DTYPES)
def test_kahan_code_is_consistent_and_precise(dtype: str) -> None:
    x = oracle.from_bits(float32_patterns())
    p, c = oracle.kahan_encode(x, dtype)
    assert_same_bits(oracle.widen(p, dtype), oracle.widen(oracle.round_nearest(x, dtype), dtype))
    decoded = oracle.kahan_decode(p, c, dtype)
    assert_same_bits(
        oracle.widen(oracle.round_nearest(decoded, dtype), dtype), oracle.widen(p, dtype)
    )
    finite = np.isfinite(oracle.widen(p, dtype))
    # Half an ulp of the compensation, a whole one where it steps back from a midpoint, and the
    # rounding of the sum.
    rest = np.abs(x[finite].astype(float) - oracle.widen(p, dtype)[finite])
    bound = ulp(rest, dtype) + ulp(x[finite], "float32")
    assert (np.abs(decoded[finite].astype(float) - x[finite]) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_kahan_keeps_every_parameter_that_nothing_moves(dtype: str) -> None:
    kept, values = widened(dtype)
    p, c = oracle.kahan_encode(values, dtype)
    assert (p == kept).all() and ((c & 0x7FFF) == 0).all()
    assert_same_bits(oracle.kahan_decode(p, c, dtype), values)


def test_kahan_passes_midpoints() -> None:
    # These drifts reach the midpoint above an odd parameter exactly. Read as a parameter written
    # from outside, that sum loses its compensation and the parameter never gets across.
    drift = np.linspace(4.45, 4.6, 64).astype(np.float32) * np.float32(2**-16)
    p = np.full(64, 0x3F81, np.uint16)
    c, start = np.zeros(64, np.uint16), oracle.widen(p, "bfloat16").astype(float)
    for _ in range(600):
        p, c = oracle.kahan_encode(oracle.kahan_decode(p, c, "bfloat16") + drift, "bfloat16")
    travelled = oracle.kahan_decode(p, c, "bfloat16") - start
    assert (np.abs(travelled / (600 * drift.astype(float)) - 1) < 0.2).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_written_parameters_win(dtype: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=1000).astype(np.float32)
    p, c = oracle.kahan_encode(x, dtype)
    written = oracle.round_nearest(x * np.float32(1.5), dtype)
    # A compensation that still fits the written value, by chance, is below half its ulp.
    decoded = oracle.kahan_decode(written, c, dtype)
    assert (oracle.round_nearest(decoded, dtype) == written).all()
    shown = oracle.show_master(x, dtype)
    assert_same_bits(oracle.master_decode(shown, x, dtype), x)
    assert_same_bits(oracle.master_decode(written, x, dtype), oracle.widen(written, dtype))


# --- random bits ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            (0xFFFFFFFF, 0xFFFFFFFF),
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(
    counter: list[int], key: tuple[int, int], expected: list[int]
) -> None:
    """The vectors that Random123 publishes."""
    assert [int(word) for word in oracle.philox4x32(counter, key)] == expected


def test_random_bits_belong_to_elements() -> None:
    source = oracle.Random(seed=0x1234567890ABCDEF, step=7, number=3)
    whole = source.bits16((5, 9), stream=2)
    words = oracle.philox4x32([1, 0, 7, 3 | 2 << 28], (0x90ABCDEF, 0x12345678))
    halves = [int(word) >> shift & 0xFFFF for word in words for shift in (0, 16)]
    assert whole.ravel()[8:16].tolist() == halves
    shard = oracle.Random(source.seed, 7, 3, first_element=13).bits16((20,), stream=2)
    assert (shard == whole.ravel()[13:33]).all()
    far = oracle.Random(seed=1, first_element=8 << 32).bits16((1,), stream=0)
    assert int(far[0]) == int(oracle.philox4x32([0, 1, 1, 0], (1, 0))[0]) & 0xFFFF
    streams = {tuple(source.bits16((64,), s)) for s in oracle.STREAMS.values()}
    assert len(streams) == 4


# --- stochastic rounding -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("r16", [0, 1, 0x5A5A, 0xFFFF])
def test_representable_values_never_move(dtype: str, r16: int) -> None:
    kept, values = widened(dtype)
    random = np.full(values.shape, r16, np.uint16)
    assert (oracle.round_stochastic(values, random, dtype) == kept).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_stochastic_picks_a_neighbour(dtype: str) -> None:
    x = oracle.from_bits(float32_patterns())
    largest = {"bfloat16": 3.3895313e38, "float16": 65504.0}[dtype]
    x = x[np.abs(x) <= largest]
    for r16 in (0, 0x7FFF, 0xFFFF):
        stored = oracle.round_stochastic(x, np.full(x.shape, r16, np.uint16), dtype)
        rounded = oracle.widen(stored, dtype)
        assert (np.signbit(rounded) == np.signbit(x)).all()
        assert (np.abs(rounded - x.astype(float)) < ulp(x, dtype)).all()
        if r16 == 0:
            assert (np.abs(rounded) <= np.abs(x)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_stochastic_is_unbiased(dtype: str) -> None:
    # All 65536 random numbers once: the mean is exact down to the bits that 16 of them resolve.
    r16 = ALL_16
    values = [1.0 + 0.37 / 128, -3.3333, 1e-3, 6.1e-5, 3.3e-5, -1.7e-7, 2.5e-8, 65519.0, 1e-9]
    for value in values:
        x = np.full(r16.shape, value, np.float32)
        rounded = oracle.widen(oracle.round_stochastic(x, r16, dtype), dtype).astype(float)
        if not np.isfinite(rounded).all():
            assert dtype == "float16" and abs(value) > 65504
            rounded = np.where(np.isfinite(rounded), rounded, 65536.0)
        assert abs(rounded.mean() - float(x[0])) <= ulp(value, dtype) * 2**-16, value


def test_stochastic_fp16_at_its_ends() -> None:
    # 2**-14 is the smallest normal value; 2**-40 the smallest that 16 random bits move.
    x = np.array([65535.0, 65536.0, 1e30, 2.0**-14, 2.0**-40, 2.0**-41, 1e-45], np.float32)
    low = oracle.round_stochastic(x, np.zeros(7, np.uint16), "float16")
    high = oracle.round_stochastic(-x, np.full(7, 0xFFFF, np.uint16), "float16")
    assert low.tolist() == [0x7BFF, 0x7C00, 0x7C00, 0x0400, 0, 0, 0]
    assert high.tolist() == [0xFC00, 0xFC00, 0xFC00, 0x8400, 0x8001, 0x8000, 0x8000]
