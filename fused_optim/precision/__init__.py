"""Precision modes: how numbers are stored and rounded. Nothing here knows a backend."""

from fused_optim.precision.modes import (
    DTYPE_TAGS,
    LOW_PRECISION_MODES,
    REMAINDER_DTYPE,
    SIXTEEN_BIT,
    STATE_DTYPES,
    SUPPORTED_DTYPES,
    extra_state,
    math_dtype,
    resolve_mode,
    resolve_state_dtype,
)

__all__ = [
    "DTYPE_TAGS",
    "LOW_PRECISION_MODES",
    "REMAINDER_DTYPE",
    "SIXTEEN_BIT",
    "STATE_DTYPES",
    "SUPPORTED_DTYPES",
    "extra_state",
    "math_dtype",
    "resolve_mode",
    "resolve_state_dtype",
]
