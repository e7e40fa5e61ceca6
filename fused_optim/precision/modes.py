"""The precision modes: their names, and the dtypes of the state that each needs.

A 16-bit parameter holds too few bits to accumulate small updates. Each mode here is a way to keep
(or, for ``nearest``, not to keep) the float32 value that the update acts on.
"""

from __future__ import annotations

from typing import Any

import torch

LOW_PRECISION_MODES = ("auto", "nearest", "stochastic", "kahan", "split", "master")
"""Accepted values of ``low_precision=``."""

SUPPORTED_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Dtypes that parameters and gradients may have."""

STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, "int8")
"""Accepted values of ``state_dtype=``."""

DTYPE_TAGS = {dtype: tag for tag, dtype in enumerate((*SUPPORTED_DTYPES, torch.uint8))}
"""The tags of dtypes in kernel tables; uint8 is that of records of moments in 8 bits."""

SIXTEEN_BIT = (torch.float16, torch.bfloat16)
"""Dtypes of parameters that have a precision mode."""

REMAINDER_DTYPE = torch.bfloat16
"""Dtype in which the 16 bits of a remainder, an int16, are kept.

No backend of torch.distributed sends int16, and much code casts state to its parameter's dtype.
Bits in the parameter's own dtype pass through both unchanged.
"""


def resolve_mode(low_precision: str, dtype: torch.dtype) -> str:
    """Return the mode in which a parameter of ``dtype`` trains.

    Args:
        low_precision: one of `LOW_PRECISION_MODES`.
        dtype: the parameter's dtype.

    Returns:
        ``"none"`` for float32 and float64, else a mode other than ``"auto"``.

    Raises:
        ValueError: ``split`` was asked for a float16 parameter. A float16 value stands for up to a
            billion float32 values, so no 16-bit remainder recovers the one it came from.
    """
    if dtype not in SIXTEEN_BIT:
        return "none"
    if low_precision == "auto":
        return "split" if dtype is torch.bfloat16 else "master"
    if low_precision == "split" and dtype is torch.float16:
        raise ValueError(
            "low_precision='split' works for bfloat16 parameters only, and one here is float16; "
            "use 'master' (4 more bytes per parameter), 'kahan' or 'auto'"
        )
    return low_precision


def extra_state(mode: str, dtype: torch.dtype) -> tuple[str, torch.dtype] | None:
    """Return the key and dtype of the per-element state that ``mode`` keeps, or None.

    Args:
        mode: a resolved mode, see `resolve_mode`.
        dtype: the parameter's dtype.
    """
    return {
        "master": ("master", torch.float32),
        "split": ("remainder", REMAINDER_DTYPE),
        "kahan": ("compensation", dtype),
    }.get(mode)


def math_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the registers in which a parameter of ``dtype`` is updated."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def resolve_state_dtype(
    state_dtype: torch.dtype | str | None, dtype: torch.dtype
) -> tuple[torch.dtype, torch.dtype]:
    """Return the storage dtypes of the first and second moments of a parameter of ``dtype``.

    float64 parameters keep float64 moments. ``"int8"`` is uint8, the bytes of records (see
    `fused_optim.precision.eight_bit`), and float32 for parameters that it does not suit. float16
    holds first moments only: a second moment underflows there at gradients of 1e-4, so it stays
    float32.

    Args:
        state_dtype: one of `STATE_DTYPES`, or None for torch's footprint without torch's
            stall: bfloat16 for 16-bit parameters, float32 for float32.
        dtype: the parameter's dtype.
    """
    if dtype is torch.float64:
        return torch.float64, torch.float64
    if state_dtype is None:
        state_dtype = torch.bfloat16 if dtype in SIXTEEN_BIT else torch.float32
    if state_dtype == "int8":
        return torch.uint8, torch.uint8
    if state_dtype is torch.float16:
        return torch.float16, torch.float32
    return state_dtype, state_dtype


def is_packed(value: Any) -> bool:
    """Return whether a value of a state is records of moments in 8 bits."""
    return isinstance(value, torch.Tensor) and value.dtype is torch.uint8
