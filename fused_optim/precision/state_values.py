"""Checks and converts values of state that come from a dict or from a user.

Nothing here changes an optimizer: a value is refused, or returned in the form of the state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from fused_optim.distributed import geometry
from fused_optim.precision import modes

STEP_DTYPE = torch.int64  # of a capturable step count, as torch's float32 stops counting at 2**24

REMEDY = (
    "load a state of this model, or leave this parameter's out (of the dict, or by "
    "`del optimizer.state[parameter]`) to start it afresh"
)


def as_tensor(
    key: str, value: Any, device: torch.device, *, sharded: bool, packed: bool
) -> torch.Tensor:
    """Return a loaded value, for a parameter on ``device``, as a dense tensor of real numbers.

    ``sharded`` says whether it may be a DTensor, and ``packed`` whether records of 8 bits.
    """
    if not isinstance(value, torch.Tensor):
        try:
            return torch.tensor(value, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"state {key!r} is {value!r}; it should be a tensor; load a state of this optimizer"
            ) from None
    check_kind(key, value, device, sharded=sharded, packed=packed)
    return value


def check_kind(
    key: str, value: torch.Tensor, device: torch.device, *, sharded: bool, packed: bool
) -> None:
    """Refuse a state tensor that is sharded, sparse, without memory or not of real numbers.

    Args:
        key: of the state.
        value: the tensor.
        device: of its parameter.
        sharded: whether the tensor may be a DTensor, as its parameter is one.
        packed: whether the state may be kept in 8 bits, as moments are.
    """
    what = None
    local = geometry.local_of(value)
    if geometry.is_dtensor(value) and not sharded:
        what = "is a DTensor; load the full state, or the shard that belongs to this parameter"
    elif value.layout is not torch.strided:
        what = f"has layout {value.layout}; load it as a dense tensor, `value.to_dense()`"
    elif not (
        value.dtype in modes.SUPPORTED_DTYPES
        or (packed and modes.is_packed(value))
        or (key == "remainder" and value.dtype is torch.int16)
    ):
        what = f"is {value.dtype}; it should be of a float dtype"
    elif local.is_meta and device.type != "meta":
        what = f"is on the meta device, where it has no values; {REMEDY}"
    elif local.is_neg():
        what = "is a view that shows its memory negated; take value.resolve_neg()"
    elif key == "remainder":
        remainder_bits(local)
    if what is not None:
        raise ValueError(f"state {key!r} {what}")


def remainder_bits(value: torch.Tensor) -> torch.Tensor:
    """Return a remainder in this version's form, from any form in which it was saved.

    Versions up to 0.1.0 and TransformerEngine save int16. Beside float32 moments, a flat shard
    (`fused_optim.optimizers.state_dicts.saving`) has the int16 as float32 numbers.
    """
    if value.dtype is modes.REMAINDER_DTYPE:
        return value
    numbers = value.to(torch.int16)
    if not torch.equal(numbers.to(value.dtype), value):
        raise ValueError(
            f"state 'remainder' is {value.dtype} and no int16 in that form; its bits were lost "
            "when somebody cast it. Load it as it was saved"
        )
    return numbers.view(modes.REMAINDER_DTYPE)


def check_complete(state: Mapping[str, Any], needed: Iterable[str]) -> None:
    """Refuse a state that lacks a moment, though its parameter has made steps.

    Raises:
        ValueError: the message names what is missing and what is there.
    """
    missing = [repr(key) for key in needed if state.get(key) is None]
    if missing:
        there = ", ".join(map(repr, state)) or "nothing"
        raise ValueError(
            f"the state has no {' and no '.join(missing)}, but {there}: it is incomplete or "
            f"another optimizer's, and zeros would not do for what is missing; {REMEDY}"
        )


def step_count(step: Any) -> int:
    """Return a step count, given as a number or as a tensor of one, as a Python int.

    Raises:
        ValueError: it is no whole number, or negative.
    """
    try:
        value = float(step)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        value = math.nan
    if not (value >= 0.0 and value.is_integer()):
        raise ValueError(f"state 'step' is {step!r}; it should be a whole number, 0 or more")
    return int(step) if isinstance(step, int) else int(value)


def step_tensor(step: Any, device: torch.device) -> torch.Tensor:
    """Return a step count in the form of a capturable parameter's state."""
    if not isinstance(step, torch.Tensor):
        return torch.tensor(step, device=device, dtype=STEP_DTYPE)
    return step.reshape(()).to(device=device, dtype=STEP_DTYPE)
