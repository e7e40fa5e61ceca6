"""How close is close enough: the one table of tolerances, and the assertions that read it.

A unit in the last place (ulp) is the spacing of a dtype's values at a magnitude. Bounds hold for
every element; no share of outliers is ever allowed. Values may be numpy arrays or torch tensors of
any float dtype, and are compared in float64, where float32 and 16-bit values are exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: stored significand bits, exponents of normal values."""

    significand_bits: int
    min_exponent: int
    max_exponent: int


FORMATS = {
    "float64": Format(52, -1022, 1023),
    "float32": Format(23, -126, 127),
    "float16": Format(10, -14, 15),
    "bfloat16": Format(7, -126, 127),
}

STEP_ULPS = 1.0
"""One step from identical state may end this many ulps of the stored parameter off, and ..."""
UPDATE_EPS = 8 * 2.0**-24
"""... this share of the update's size, which is what the update's own roundings amount to."""
DECAY_ULPS = 1.0
"""Allowed beside that where weight decay is on, in ulps of float32: the factor 1 - lr * wd is
rounded once, and its product with the parameter again, half an ulp each."""
STATISTIC_ULPS = 4.0
"""ulps by which a float32 moment may differ after one step."""
STORED_ULPS = 1.0
"""ulps by which a bfloat16 or float16 moment may differ after one step."""
FLOAT64_RTOL = 1e-12
"""float64 parameters compute in float64: relative difference of anything, after any steps."""

TRAJECTORY_RTOL = {
    ("float64", "none"): 1e-12,
    ("float32", "none"): 1e-4,
    ("bfloat16", "split"): 1e-4,
    ("bfloat16", "master"): 1e-4,
    ("float16", "master"): 1e-4,
    ("bfloat16", "kahan"): 2e-2,
    ("float16", "kahan"): 5e-3,
    ("bfloat16", "stochastic"): 1e-4,
    ("float16", "stochastic"): 1e-4,
}
"""Norm of the error after some hundred steps, relative to the distance travelled, by (dtype, mode).

"nearest" is not listed: it stalls by design. To this `assert_trajectory_close` adds what rounding
for storage amounts to: half an ulp of the stored parameter, a random walk of such for stochastic.
"""
BF16_MOMENTS_RTOL = 2e-2
"""Added to the above where moments are stored in bfloat16."""


def dtype_name(dtype: Any) -> str:
    """Return "float32" and the like for a torch or numpy dtype or its name."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype))
    return name.removeprefix("torch.")


def as_float64(x: Any) -> Array:
    """Return a tensor, an array or a number as a float64 array."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().double().numpy()
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return np.asarray(x, np.float64)


def ulp(x: Any, dtype: Any) -> Array:
    """Return the spacing of ``dtype``'s values at ``|x|``; that of its subnormals near zero."""
    fmt = FORMATS[dtype_name(dtype)]
    _, exponent = np.frexp(as_float64(x))  # |x| in [2^(exponent - 1), 2^exponent)
    exponent = np.clip(exponent - 1, fmt.min_exponent, fmt.max_exponent)
    return np.ldexp(1.0, exponent - fmt.significand_bits)


def assert_step_close(
    p_new: Any, p_oracle: Any, update: Any, storage_dtype: Any, *, decays: bool = False
) -> None:
    """Hold a parameter after one step from identical state to the oracle's.

    |p - oracle| <= 1 ulp(p) + 8 * 2^-24 * |update|, plus 1 ulp of float32 with weight decay and,
    for 16-bit storage, of which the first ulp is, another for the float32 value that it rounds.

    Args:
        p_new: the parameter, as stored.
        p_oracle: the oracle's, in float64.
        update: size of the update, without cancellation: the oracle's ``details["update"]``.
        storage_dtype: of the stored parameter; 16-bit ones are judged by their own, larger ulp.
        decays: whether the step multiplied the parameter by a decay factor other than 1.
    """
    name = dtype_name(storage_dtype)
    expected, size = as_float64(p_oracle), np.abs(as_float64(update))
    if name == "float64":
        bound = FLOAT64_RTOL * (np.abs(expected) + size)
    else:
        math_ulps = (DECAY_ULPS if decays else 0.0) + (STEP_ULPS if name != "float32" else 0.0)
        bound = UPDATE_EPS * size + math_ulps * _ulp_of_pair(p_new, expected, "float32")
        bound = bound + STEP_ULPS * _ulp_of_pair(p_new, expected, name)
    assert_within(p_new, expected, bound, "parameter")


def assert_statistic_close(
    actual: Any, expected: Any, dtype: Any = "float32", size: Any | None = None
) -> None:
    """Hold a moment or a factored statistic after one step from identical state to the oracle's.

    Args:
        actual: the statistic, as stored.
        expected: the oracle's.
        dtype: that it is stored in.
        size: magnitude at which the sum was rounded, where its terms may cancel: the oracle's
            ``details[key]``. ``exp_avg`` needs it, and sums of squares after an L2 term.
    """
    name, expected = dtype_name(dtype), as_float64(expected)
    at = expected if size is None else np.maximum(np.abs(expected), np.abs(as_float64(size)))
    if name == "float64":
        bound = FLOAT64_RTOL * np.abs(at)
    else:
        bound = STATISTIC_ULPS * ulp(at, "float32")
        if name != "float32":
            bound = bound + STORED_ULPS * _ulp_of_pair(actual, expected, name)
    assert_within(actual, expected, bound, "statistic")


def assert_trajectory_close(
    p: Any,
    p_oracle: Any,
    p_start: Any,
    dtype: Any,
    mode: str = "none",
    *,
    steps: int,
    bf16_moments: bool = False,
) -> None:
    """Hold a parameter after many steps to the oracle's, by norm and distance travelled.

    Args:
        p: the parameter, as stored.
        p_oracle: the oracle's, after the same gradients.
        p_start: where both started.
        dtype: that the parameter is stored in.
        mode: how its float32 value is kept.
        steps: how many there were; stochastic errors, at most half an ulp of standard deviation
            each, add up as a random walk.
        bf16_moments: whether the moments are stored in bfloat16.
    """
    expected, name = as_float64(p_oracle), dtype_name(dtype)
    travelled = np.linalg.norm(expected - as_float64(p_start))
    rtol = TRAJECTORY_RTOL[name, mode] + (BF16_MOMENTS_RTOL if bf16_moments else 0.0)
    roundings = np.sqrt(steps) if mode == "stochastic" else 1.0
    bound = rtol * travelled + 0.5 * roundings * np.linalg.norm(ulp(expected, name))
    error = np.linalg.norm(as_float64(p) - expected)
    assert error <= bound, f"trajectory is {error:.3e} off, allowed {bound:.3e} ({name}, {mode})"


def assert_within(actual: Any, expected: Any, bound: Any, what: str) -> None:
    """Assert |actual - expected| <= bound everywhere; NaN and infinities must agree exactly."""
    actual, expected = as_float64(actual), as_float64(expected)
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    finite = np.isfinite(expected)
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        off = np.where(finite, ~(np.abs(actual - expected) <= bound), ~same)
    if not off.any():
        return
    first = tuple(int(i) for i in np.argwhere(off)[0])
    allowed = np.broadcast_to(bound, expected.shape)[first]
    raise AssertionError(
        f"{what}: {int(off.sum())} of {off.size} elements out of bounds, first at {first}: "
        f"{actual[first]!r} is not {expected[first]!r} +- {allowed:.3e}"
    )


def assert_same_bits(actual: Any, expected: Any, what: str = "values") -> None:
    """Assert equality bit for bit, signs of zero included; any NaN equals any NaN."""
    actual, expected = as_float64(actual), as_float64(expected)
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    same = (actual == expected) & (np.signbit(actual) == np.signbit(expected))
    off = ~(same | (np.isnan(actual) & np.isnan(expected)))
    if off.any():
        first = tuple(int(i) for i in np.argwhere(off)[0])
        raise AssertionError(
            f"{what}: {int(off.sum())} of {off.size} elements differ, first at {first}: "
            f"{actual[first]!r} is not {expected[first]!r}"
        )


def _ulp_of_pair(a: Any, b: Any, dtype: Any) -> Array:
    """Spacing at the larger of two magnitudes: an edge of binades between them does not count."""
    a, b = np.abs(as_float64(a)), np.abs(as_float64(b))
    return ulp(np.where(np.isfinite(a), np.maximum(a, b), b), dtype)
