"""Checks of users' arguments. Each error says what was got, what is needed and what to do.

Every check runs before anything is changed.
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Iterable
from typing import Any

import torch

from fused_optim import errors, precision


def check_params(params: list[Any]) -> None:
    """Refuse a parameter that occurs twice in a group: a fused step would update it twice."""
    tensors = [p[1] if isinstance(p, tuple) and len(p) == 2 else p for p in params]
    if len({id(p) for p in tensors}) != len(tensors):
        raise ValueError(
            "a parameter occurs twice in one group; list each parameter once "
            "(tied weights count as one)"
        )


def check_number(
    value: Any,
    name: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_high: bool = False,
) -> None:
    """Refuse a hyperparameter that is not a number within [low, high], or [low, high).

    A tensor of one element counts as its number. The error gives the interval.
    """
    if value is UNREAD:
        return
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"Tensor {name} must be 1-element, got shape {tuple(value.shape)}")
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"Invalid {name}: {value!r} - should be a number")
    try:
        value = float(value)
    except OverflowError:
        raise ValueError(f"Invalid {name}: {value!r} - is too large for a float") from None
    if not low <= value <= high or (open_high and value == high):
        if high == math.inf:
            allowed = "a number, not NaN" if low == -math.inf else f">= {low}"
        elif low == -math.inf:
            allowed = f"<= {high}"
        else:
            allowed = f"in [{low}, {high}{')' if open_high else ']'}"
        raise ValueError(f"Invalid {name}: {value} - should be {allowed}")


def plain(value: Any) -> Any:
    """Return a hyperparameter with Python's numbers in place of NumPy's, in pairs too.

    A checkpoint with a NumPy scalar in it needs ``torch.load(..., weights_only=False)``.
    """
    if type(value) in (tuple, list):
        return type(value)(map(plain, value))
    if isinstance(value, numbers.Real) and type(value) not in (bool, int, float):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value


def check_betas(betas: Any) -> None:
    """Refuse anything but two numbers in [0, 1)."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"Invalid betas: {betas!r} - should be a pair of numbers in [0.0, 1.0)")
    for i, beta in enumerate(betas):
        check_number(beta, f"beta parameter at index {i}", low=0.0, high=1.0, open_high=True)


def check_flag(value: Any, name: str) -> None:
    """Refuse anything but True and False, or 1 and 0, which equal them."""
    if not (isinstance(value, (bool, int)) and value in (0, 1)):
        raise ValueError(f"Invalid {name}: {value!r} - should be True or False")


OF_THE_OPTIMIZER = (
    *("backend", "max_grad_norm", "clip_group", "seed"),
    *("skip_nonfinite", "check_ranks"),
)
"""Names of the options that belong to the whole optimizer."""


def check_keys(group: dict[str, Any], optimizer: Any) -> None:
    """Refuse keys of a group that would have no effect.

    ``ZeroRedundancyOptimizer`` gives groups all that it gives the constructor, which is harmless.
    """
    for name in OF_THE_OPTIMIZER:
        common = getattr(optimizer, name)
        if name in group and group[name] is not common and group[name] != common:
            raise ValueError(
                f"{name!r} is {group[name]!r} in a parameter group, but it is an option of the "
                "whole optimizer; pass it to the constructor, or make another optimizer for the "
                "parameters of this group"
            )


UNREAD = object()
"""Stands for a number on a device, for which the host would have to wait."""


def unread(value: Any) -> Any:
    """Return a setting, with `UNREAD` in place of tensors on a device, which no step may read."""
    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.device.type != "cpu":
        return UNREAD
    return tuple(map(unread, value)) if type(value) is tuple else value


def settled(settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return what `same_settings` compares a group's settings with, once they were checked.

    Numbers, tuples and strings can't change. Where another setting can change in place, nothing
    could be compared with it, so None is returned and the group is checked anew each time. The
    parameters, which are checked by themselves and must not be kept alive, don't count, nor do
    tensors that the host can't see.
    """
    kept = {name: value for name, value in settings.items() if name != "params"}
    if any(_changes_in_place(value) for name, value in kept.items() if name != "param_names"):
        return None
    return kept


def same_settings(known: dict[str, Any] | None, now: dict[str, Any]) -> bool:
    """Return whether a group's settings are the very objects that `settled` was given."""
    return (
        known is not None
        and len(known) == len(now) - 1
        and all(now.get(name, known) is value for name, value in known.items())
    )


def _changes_in_place(value: Any) -> bool:
    if type(value) is tuple:
        return any(map(_changes_in_place, value))
    in_sight = isinstance(value, torch.Tensor) and value.device.type == "cpu"
    return in_sight or type(value) is list


def check_there(settings: dict[str, Any], defaults: dict[str, Any], where: str) -> None:
    """Refuse a group from which somebody has deleted a hyperparameter."""
    for name in defaults:
        if name not in settings and name != "differentiable":  # which torch adds to the defaults
            raise ValueError(
                f"{where}: {name!r} is missing; set group[{name!r}], or rebuild the group with "
                "add_param_group, which fills in what it is not given"
            )


def check_common(group: dict[str, Any]) -> None:
    """Check the options that every optimizer takes."""
    low_precision, state_dtype = group["low_precision"], group["state_dtype"]
    if low_precision not in precision.LOW_PRECISION_MODES:
        raise ValueError(
            f"Invalid low_precision: {low_precision!r} - should be one of "
            f"{', '.join(precision.LOW_PRECISION_MODES)}"
        )
    if state_dtype is not None and state_dtype not in precision.STATE_DTYPES:
        raise ValueError(
            f"Invalid state_dtype: {state_dtype!r} - should be torch.float32, torch.bfloat16, "
            "torch.float16 or 'int8'"
        )
    check_flag(group["maximize"], "maximize")
    check_flag(group["capturable"], "capturable")


def refuse_options(cls: type, names: Iterable[str], base: type) -> None:
    """Raise a TypeError for options that ``cls`` lacks; it names a class that has them, if any.

    Subclasses of ``base`` in this package are searched: those of the same name first, then those
    of the same update.
    """
    name = next(iter(names))
    others, known = list(base.__subclasses__()), []
    while others:
        known.append(others.pop(0))
        others += known[-1].__subclasses__()
    family = getattr(cls, "_family", None)
    known.sort(
        key=lambda other: (
            other.__name__ != cls.__name__,
            getattr(other, "_family", None) != family,
        )
    )
    has = [other for other in known if name in inspect.signature(other.__init__).parameters]
    ours = [other for other in has if other.__module__.startswith("fused_optim.")]
    public = [errors.class_name(other) for other in ours if not other.__name__.startswith("_")]
    remedy = f"; {public[0]} has it" if public else ""
    raise TypeError(f"{errors.class_name(cls)} has no option {name!r}{remedy}")
