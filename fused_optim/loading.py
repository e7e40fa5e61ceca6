"""Turning a state dict, ours or a peer's, into this optimizer's state and groups."""

from __future__ import annotations

import copy
import numbers
from typing import Any

import torch

from fused_optim import precision, state, validation
from fused_optim.capturable import step_tensor


def converted(optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return what ``optimizer.__setstate__`` takes to load ``state_dict``; changes nothing.

    Raises:
        ValueError: groups, their sizes or the shapes of state tensors do not match.
    """
    groups, saved_groups = optimizer.param_groups, copy.deepcopy(state_dict["param_groups"])
    sizes, saved_sizes = ([len(g["params"]) for g in gs] for gs in (groups, saved_groups))
    if len(sizes) != len(saved_sizes):
        raise ValueError(
            "loaded state dict has a different number of parameter groups: "
            f"{len(saved_sizes)}, not {len(sizes)}"
        )
    if sizes != saved_sizes:
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of "
            f"optimizer's group: sizes are {saved_sizes}, not {sizes}"
        )
    owner = {}
    for number, (group, saved) in enumerate(zip(groups, saved_groups, strict=True)):
        for index, param_id in enumerate(saved["params"]):
            where = f"{type(optimizer).__name__}: {validation.place(group, number, index)}: "
            owner[param_id] = (group, group["params"][index], saved.get("step", 0), where)
    new_state: dict[Any, Any] = {}
    for key, value in state_dict["state"].items():
        if key in owner:
            group, param, group_step, where = owner[key]
            try:
                new_state[param] = _converted_state(optimizer, group, param, value, group_step)
            except ValueError as error:
                raise ValueError(where + str(error)) from None
        else:
            new_state[key] = value
    result = type(optimizer.state)(dict)
    result.update(new_state)
    params = (p for group in groups for p in group["params"] if p in result)
    counts = [int(result[p].get("step", 0)) for p in params]
    for saved in saved_groups:
        saved.setdefault("step", max(counts, default=0))  # the optimizer's own, as in apex's groups
    new_groups = [
        _merged_group(optimizer, group, saved)
        for group, saved in zip(groups, saved_groups, strict=True)
    ]
    return {"state": result, "param_groups": new_groups}


def _converted_state(
    optimizer, group: dict[str, Any], param: torch.Tensor, saved: dict[str, Any], group_step: Any
) -> dict[str, Any]:
    """Return one parameter's state: known tensors in this optimizer's dtypes and shapes.

    Keys that this optimizer does not know are kept as they are, on the parameter's device.
    """
    if not saved:
        return {}
    saved = {optimizer._aliases.get(key, key): value for key, value in saved.items()}
    mode = precision.resolve_mode(group["low_precision"], param.dtype)
    spec = optimizer._state_spec(group, param) + state.extra_tensor(mode, param.dtype)
    known = {tensor.key: tensor for tensor in spec}
    result = {}
    for key, value in saved.items():
        if key in known:
            result[key] = known[key].converted(value, param)
        else:
            result[key] = value.to(param.device) if isinstance(value, torch.Tensor) else value
    step = int(float(saved.get("step", group_step)))
    result["step"] = step_tensor(step, param.device) if group["capturable"] else step
    return result


def _merged_group(optimizer, group: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """Return the loaded group: the dict's hyperparameters, the optimizer's storage options."""
    from fused_optim.base import STRUCTURAL_OPTIONS

    saved = optimizer._translated_group(saved)
    kept = {key: group[key] for key in ("params", *STRUCTURAL_OPTIONS)}
    merged = {**group, **{k: v for k, v in saved.items() if k != "step"}, **kept}
    return {key: _like(group.get(key), value) for key, value in merged.items()}


def _like(old: Any, value: Any) -> Any:
    """Return a loaded hyperparameter as a tensor where the old one was, else not as a tensor."""
    if isinstance(old, torch.Tensor) and isinstance(value, (torch.Tensor, numbers.Real)):
        return torch.as_tensor(value).to(device=old.device, dtype=old.dtype, copy=True)
    if isinstance(old, tuple) and isinstance(value, (tuple, list)) and len(old) == len(value):
        return tuple(map(_like, old, value))
    if isinstance(old, numbers.Real) and isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()  # it would be read back at each step
    return value
