"""Turns an optimizer's state into a state dict: in torch's layout, and in that of flat shards."""

from __future__ import annotations

from typing import Any

import torch

from fused_optim.distributed import clipping
from fused_optim.optimizers import validation
from fused_optim.optimizers.state_dicts.loading import STORAGE_OPTIONS


def shown(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a user's state dict, made from the one that torch collected, which is not changed.

    Groups have hyperparameters alone, and no option of how state is stored. NumPy numbers, which
    schedules may write, become Python's, so that a saved dict loads with ``weights_only=True``.
    """
    result = dict(state_dict)
    if "param_groups" in result:  # a hook may have removed the state
        result["param_groups"] = [_shown_group(optimizer, g) for g in result["param_groups"]]
    if isinstance(result.get("state"), dict):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        result["state"] = {
            key: _shown_state(optimizer, state, params[key] if _is_place(key, params) else None)
            for key, state in result["state"].items()
        }
    return result


def _is_place(key: Any, params: list[torch.Tensor]) -> bool:
    return isinstance(key, int) and 0 <= key < len(params)


def _shown_group(optimizer: Any, group: dict[str, Any]) -> dict[str, Any]:
    hidden = [name for name in STORAGE_OPTIONS if name not in optimizer.defaults]
    hidden += validation.OF_THE_OPTIMIZER
    if optimizer.settings(group)["maximize"]:  # peers have no such key, so only True needs one
        group = {"maximize": True, **group}
    result = {key: validation.plain(v) for key, v in group.items() if key not in hidden}
    if isinstance(result.get("lr"), torch.Tensor):  # schedulers write to this tensor
        result["lr"] = result["lr"].detach().clone()
    return result


def _shown_state(optimizer: Any, state: Any, param: torch.Tensor | None) -> Any:
    if param is None or not isinstance(state, dict):
        return state
    if "step" in state and optimizer._shows_torch_steps:
        state = {**state, "step": _torch_step(state["step"])}
    return _flat_shard_state(state) if clipping.is_flat_shard(param) else state


def _torch_step(step: Any) -> torch.Tensor:
    """Return a step count in torch's form: 0-d float32, on the device where it was."""
    if isinstance(step, torch.Tensor):
        return step.to(torch.float32, copy=True)
    return torch.tensor(float(step), dtype=torch.float32, device="cpu")


def _flat_shard_state(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a flat shard in the form that FullyShardedDataParallel can gather.

    FSDP1 wants one dtype for all tensors of a parameter, and scalars that are equal on every rank.
    So tensors of different dtypes become float32, which holds each of their values exactly. A root
    mean square is left out, as the next step computes it anew.
    """
    result = {key: value for key, value in state.items() if key != "RMS"}
    tensors = {k: v for k, v in result.items() if isinstance(v, torch.Tensor) and v.dim() > 0}
    if len({value.dtype for value in tensors.values()}) > 1:
        for key, value in tensors.items():
            # A remainder has the bits of an integer: read as a bfloat16 number it could be a NaN.
            number = value.view(torch.int16) if key == "remainder" else value
            result[key] = number.to(torch.float32)
    return result
