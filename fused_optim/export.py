"""Float32 weights out of a 16-bit model and back in: parameters with what their mode keeps beside.

A 16-bit parameter shows the rounding of a float32 value; the optimizer keeps the rest of it. A
model's own ``state_dict`` has the rounding alone.
"""

from __future__ import annotations

from typing import Any

import torch

from fused_optim import precision, state, validation
from fused_optim.eager import storage


@torch.no_grad()
def fp32_state_dict(
    optimizer: Any, model: torch.nn.Module, prefix: str, device: torch.device | str | None
) -> dict[str, Any]:
    """Return the model's state dict with the full value of every optimized parameter.

    `fused_optim.base.FusedOptimizer.fp32_state_dict` documents it.
    """
    modes = _modes_of(optimizer, model, "fp32_state_dict")
    result = model.state_dict(prefix=prefix)
    values: dict[int, torch.Tensor] = {}  # tied weights stay one tensor
    for name, param in model.state_dict(prefix=prefix, keep_vars=True).items():
        if id(param) in modes:
            if id(param) not in values:
                values[id(param)] = _full_value(
                    param, optimizer.state.get(param, {}), modes[id(param)], device
                )
            result[name] = values[id(param)]
        elif device is not None and isinstance(param, torch.Tensor):
            result[name] = result[name].to(device)
    return result


@torch.no_grad()
def load_fp32_state_dict(
    optimizer: Any, model: torch.nn.Module, state_dict: dict[str, Any], strict: bool
) -> Any:
    """Load a state dict into the model, its float32 values into what the modes keep.

    `fused_optim.base.FusedOptimizer.load_fp32_state_dict` documents it.
    """
    modes = _modes_of(optimizer, model, "load_fp32_state_dict")
    targets = {
        name: param
        for name, param in model.state_dict(keep_vars=True).items()
        if id(param) in modes and name in state_dict
    }
    for name, param in targets.items():
        if state_dict[name].shape != param.shape:
            raise ValueError(
                f"load_fp32_state_dict: {name!r} has shape {tuple(state_dict[name].shape)} in the "
                f"state dict and {tuple(param.shape)} in the model; load a state of the same model"
            )
    incompatible = model.load_state_dict(state_dict, strict=strict)
    optimizer.init_state()
    for name, param in targets.items():
        _store_(param, optimizer.state[param], modes[id(param)], state_dict[name])
    return incompatible


def _modes_of(optimizer: Any, model: torch.nn.Module, what: str) -> dict[int, str]:
    """Return the precision mode of every parameter of the optimizer, by id.

    Raises:
        ValueError: the model lacks one of them.
    """
    modes: dict[int, str] = {}
    missing = []
    there = set(map(id, model.parameters()))
    for number, group in enumerate(optimizer.param_groups):
        for index, param in enumerate(group["params"]):
            modes[id(param)] = precision.resolve_mode(group["low_precision"], param.dtype)
            if id(param) not in there:
                missing.append(validation.place(group, number, index))
    if missing:
        raise ValueError(
            f"{what}: {len(missing)} of the optimizer's {len(modes)} parameters are not in the "
            f"model, {missing[0]} is the first; pass the very model that is optimized (not a copy "
            "of it), or a torch.nn.ModuleList of all of its parts"
        )
    return modes


def _full_value(
    param: torch.Tensor, kept: dict[str, Any], mode: str, device: torch.device | str | None
) -> torch.Tensor:
    """Return the value that a parameter and its state stand for, in its math dtype."""
    param = param.detach()
    if mode == "none":
        return param if device is None else param.to(device)
    mode, extra = state.held_extra(param, kept, mode)
    value = torch.empty_like(param, dtype=torch.float32)
    for _, (block, target, beside) in storage.blocks([param, value, extra]):
        target.copy_(storage.decode(block, beside, mode))
    return value if device is None else value.to(device)


def _store_(param: torch.Tensor, kept: dict[str, Any], mode: str, value: torch.Tensor) -> None:
    """Make a parameter and its extra state stand for ``value``, as nearly as the mode can."""
    if mode == "stochastic":  # there is no step to draw for
        mode = "nearest"
    key = precision.extra_state(mode, param.dtype)
    extra = None if key is None else kept[key[0]]
    for first, (block, source, beside) in storage.blocks([param.detach(), value, extra]):
        source = source.to(param.device, precision.math_dtype(param.dtype))
        storage.encode_(block, beside, source, mode, None, first)
