"""Turns a state dict, ours or a peer's, into this optimizer's state and groups.

Nothing here changes the optimizer: a whole dict is converted and checked before any of it is used.
"""

from __future__ import annotations

import collections
import copy
import numbers
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from fused_optim import errors, precision
from fused_optim.optimizers import validation
from fused_optim.optimizers.state_dicts import peers
from fused_optim.optimizers.state_dicts.matching import in_order_of, sections
from fused_optim.precision import repacking, state, state_values

STORAGE_OPTIONS = ("low_precision", "state_dtype", "capturable")
"""Options of how state is stored. Loading a state dict leaves them as the constructor set them."""


class _Home(NamedTuple):
    """The parameter that a loaded state belongs to, and its group."""

    group: dict[str, Any]  # the loaded group's settings
    param: torch.Tensor
    group_step: Any  # apex and TransformerEngine count steps in the group
    where: str


def converted(optimizer, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the argument of ``optimizer.__setstate__`` that loads ``state_dict``; change nothing.

    Raises:
        ValueError: the dict is no optimizer's state dict, is that of another model or optimizer, or
            has values that the constructor would refuse.
    """
    name = type(optimizer).__name__
    notes: dict[str, list[str]] = {}
    with errors.naming(f"{name}.load_state_dict: "):
        saved_state, saved_groups = sections(state_dict)
        saved_groups = in_order_of(optimizer.param_groups, copy.deepcopy(saved_groups))
        counts = _step_counts(saved_state, saved_groups)
        new_groups = [
            _merged_group(optimizer, group, {"step": max(counts, default=0), **saved}, index)
            for index, (group, saved) in enumerate(
                zip(optimizer.param_groups, saved_groups, strict=True)
            )
        ]
        homes = _homes(optimizer, new_groups, saved_groups)
        new_state = collections.defaultdict(dict)
        for key, value in saved_state.items():
            home = homes.get(key)
            if home is None:
                _check_stray(key, value)
                new_state[key] = value
                continue
            with errors.naming(home.where):
                new_state[home.param], note = _converted_state(optimizer, home, value)
            if note is not None:
                notes.setdefault(note, []).append(home.where.removesuffix(": "))
    for note, places in notes.items():
        more = "" if len(places) == 1 else f" and {len(places) - 1} more"
        warnings.warn(
            f"{name}.load_state_dict: {places[0]}{more}: {note}", UserWarning, stacklevel=5
        )
    return {"state": new_state, "param_groups": new_groups}


def _homes(optimizer, new_groups: list[dict], saved_groups: list[dict]) -> dict[Any, _Home]:
    """Return the home of each parameter's state, by the parameter's id in the dict."""
    homes = {}
    for number, (group, saved) in enumerate(zip(new_groups, saved_groups, strict=True)):
        settings = optimizer.settings(group)
        for index, param_id in enumerate(saved["params"]):
            where = f"{errors.place(group, number, index)}: "
            param = group["params"][index]
            homes[param_id] = _Home(settings, param, saved.get("step", 0), where)
    return homes


def _step_counts(saved_state: Mapping[Any, Any], saved_groups: list[dict]) -> list[int]:
    """Return the step counts of a dict: each parameter's, or each group's."""
    with errors.naming("state of a parameter: "):
        counts = [
            state_values.step_count(one["step"])
            for one in saved_state.values()
            if isinstance(one, Mapping) and one.get("step") is not None
        ]
    with errors.naming("parameter group: "):
        return counts + [state_values.step_count(g["step"]) for g in saved_groups if "step" in g]


def _check_stray(key: Any, value: Any) -> None:
    """Refuse state of a parameter that no group of the dict has."""
    if isinstance(value, Mapping) and any(isinstance(v, torch.Tensor) for v in value.values()):
        raise ValueError(
            f"there is state under {key!r}, which no parameter of the dict's groups has; load the "
            "dict as it was saved, its 'params' with it"
        )


def _converted_state(optimizer, home: _Home, saved: Any) -> tuple[dict[str, Any], str | None]:
    """Return one parameter's state, and a note for the user if it was translated.

    Known tensors are converted to this optimizer's dtypes and shapes. Values under other keys are
    kept as they are, on the parameter's device.
    """
    if not isinstance(saved, Mapping):
        raise ValueError(
            f"its state is {saved!r}; it should be a dict of tensors; load the dict as it was saved"
        )
    if not saved:
        return {}, None
    group, param = home.group, home.param
    saved, note = peers.translated(saved)
    saved = {optimizer._aliases.get(key, key): value for key, value in saved.items()}
    for key in optimizer._foreign:
        if isinstance(saved.get(key), torch.Tensor):
            raise ValueError(
                f"its state has {key!r}, which {type(optimizer).__name__} does not keep: the dict "
                "is another optimizer's. Load one of the same optimizer, or remove the key from it"
            )
    mode = precision.resolve_mode(group["low_precision"], param.dtype)
    extra = state.extra_tensor(mode, param.dtype)
    spec = optimizer._state_spec(group, param)
    step = state_values.step_count(saved.get("step", home.group_step))
    if step or any(isinstance(v, torch.Tensor) for k, v in saved.items() if k != "step"):
        state_values.check_complete(saved, [tensor.key for tensor in spec if tensor.needed])
    saved = repacking.readable(saved, spec, param)
    known = {tensor.key: tensor for tensor in state.every_extra(param.dtype) + spec + extra}
    result = {}
    for key, value in saved.items():
        if isinstance(value, Mapping) and not value:
            continue  # torch.distributed.checkpoint's mark for a key that a flattened dict lacks
        if key in known:
            if value is not None:
                result[key] = known[key].converted(value, param)
        else:
            result[key] = value.to(param.device) if isinstance(value, torch.Tensor) else value
    state.drop_what_says_nothing(param, result, mode)
    repacking.repack(param, result, spec)
    note = note or _lost_extra(saved, extra)
    result["step"] = state_values.step_tensor(step, param.device) if group["capturable"] else step
    return result, note


def _lost_extra(saved: Mapping[str, Any], extra: tuple[state.StateTensor, ...]) -> str | None:
    """Return a note if a flattened dict was read by the keys of this precision mode alone."""
    if extra and saved.get(extra[0].key) == {}:
        return (
            f"the flattened dict has no {extra[0].key!r}, so weights go on from their 16 bits. If "
            "it was saved in another low_precision, load it in that one, or not flattened"
        )
    return None


def _merged_group(
    optimizer, group: dict[str, Any], saved: dict[str, Any], index: int
) -> dict[str, Any]:
    """Return the loaded group: the dict's hyperparameters, the optimizer's storage and names."""
    saved = optimizer._translated_group(saved)
    options = optimizer.settings(group)
    own = [*STORAGE_OPTIONS, *validation.OF_THE_OPTIMIZER]
    own += [name for name in ("params", "param_names") if name in group]
    # A group that lacks an option gets none from a dict that agrees with the optimizer's.
    if "maximize" not in group and saved.get("maximize") == options["maximize"]:
        own.append("maximize")
    merged = {**group, **{k: v for k, v in saved.items() if k != "step" and k not in own}}
    merged = {key: _like(group.get(key), value) for key, value in merged.items()}
    optimizer._check_settings(optimizer.settings(merged), index)
    return merged


def _like(old: Any, value: Any) -> Any:
    """Return a loaded hyperparameter: as a tensor if the old one was a tensor, else as a number."""
    if isinstance(old, torch.Tensor) and isinstance(value, (torch.Tensor, numbers.Real)):
        if isinstance(value, torch.Tensor):
            return value.to(device=old.device, dtype=old.dtype, copy=True)
        return torch.tensor(value, device=old.device, dtype=old.dtype)
    if isinstance(old, tuple) and isinstance(value, (tuple, list)) and len(old) == len(value):
        return tuple(map(_like, old, value))
    if isinstance(old, numbers.Real) and isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()  # each step would read the tensor
    return value
