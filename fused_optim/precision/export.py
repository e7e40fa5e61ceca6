"""Exports the float32 weights of a 16-bit model, and loads them.

A 16-bit parameter is the rounding of a float32 value, and the optimizer keeps the rest. A model's
own ``state_dict`` has the rounding alone.
"""

from __future__ import annotations

from typing import Any

import torch

from fused_optim import errors
from fused_optim.distributed import geometry, placement
from fused_optim.precision import checks, encoding, modes, state


class Float32Weights:
    """The methods of an optimizer that export and load float32 weights."""

    @torch.no_grad()
    def fp32_state_dict(
        self,
        model: torch.nn.Module,
        *,
        prefix: str = "",
        device: torch.device | str | None = None,
    ) -> dict[str, Any]:
        """Return the model's state dict, optimized parameters in float32 at their full value.

        That is the float32 value that ``low_precision`` keeps: all of it with ``split`` and
        ``master``, parameter plus compensation with ``kahan``, the parameter itself with
        ``nearest`` and ``stochastic``. Whatever was written to a parameter since its last step
        wins, as in the next step. Everything else (buffers, parameters that are not optimized) is
        as ``model.state_dict()`` gives it, and tied weights stay one tensor. float64 parameters
        stay float64.

        Memory: 4 bytes per 16-bit parameter; other tensors are shared with the model.

        Args:
            model: the model whose parameters this optimizer has.
            prefix: of the names, as for ``model.state_dict``.
            device: where all tensors of the result live, parameter by parameter; None leaves them
                where they are.

        Raises:
            ValueError: a parameter of this optimizer is not in the model.
        """
        modes = _modes_of(self, model, "fp32_state_dict")
        result = model.state_dict(prefix=prefix)
        values: dict[int, torch.Tensor] = {}  # tied weights stay one tensor
        for name, param in model.state_dict(prefix=prefix, keep_vars=True).items():
            if id(param) in modes:
                if id(param) not in values:
                    values[id(param)] = _full_value(
                        param, self.state.get(param, {}), modes[id(param)], device
                    )
                result[name] = values[id(param)]
            elif device is not None and isinstance(param, torch.Tensor):
                result[name] = result[name].to(device)
        return result

    @torch.no_grad()
    def load_fp32_state_dict(
        self, model: torch.nn.Module, state_dict: dict[str, Any], *, strict: bool = True
    ) -> Any:
        """Load weights into the model and their float32 values into what the modes keep.

        With ``split`` and ``master`` nothing of a float32 weight is lost: `fp32_state_dict`
        returns it bit for bit. ``kahan`` keeps twice the bits of the parameter, other modes the
        nearest 16-bit value. ``model.load_state_dict`` alone keeps just that in every mode.
        Moments and step counts stay as they are; those of a checkpoint are loaded first, with
        `load_state_dict`, which replaces what is kept here.

        Memory: creates the optimizer's state, where there is none yet, and nothing else.

        Args:
            model: the model whose parameters this optimizer has.
            state_dict: weights of any float dtype, on any device, under the model's names.
            strict: as for ``model.load_state_dict``.

        Returns:
            What ``model.load_state_dict`` does: the missing and the unexpected names.

        Raises:
            ValueError: a parameter of this optimizer is not in the model, or a weight has another
                shape than its parameter; nothing was changed.
            RuntimeError: ``model.load_state_dict`` refused the names.
        """
        modes = _modes_of(self, model, "load_fp32_state_dict")
        targets = {
            name: param
            for name, param in model.state_dict(keep_vars=True).items()
            if id(param) in modes and name in state_dict
        }
        for name, param in targets.items():
            given, needed = tuple(state_dict[name].shape), tuple(param.shape)
            if given != needed:
                raise ValueError(
                    f"load_fp32_state_dict: {name!r} has shape {given} in the state dict and "
                    f"{needed} in the model; load a state of the same model"
                )
        self.init_state()  # first, as this refuses state that does not fit
        incompatible = model.load_state_dict(state_dict, strict=strict)
        for name, param in targets.items():
            _store_(param, self.state.get(param, {}), modes[id(param)], state_dict[name])
        return incompatible


def _modes_of(optimizer: Any, model: torch.nn.Module, what: str) -> dict[int, str]:
    """Return the precision mode of every parameter of the optimizer, by id.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: the model lacks one of them.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"{what} takes the model whose parameters are optimized, not a {type(model).__name__}"
        )
    modes: dict[int, str] = {}
    missing = []
    there = set(map(id, model.parameters()))
    for number, group in enumerate(optimizer.param_groups):
        for index, param in enumerate(group["params"]):
            where = errors.place(group, number, index)
            if checks.trains(param):
                checks.check_param(param, f"{what}: {where}")
            with errors.naming(f"{what}: {where}: "):
                state.check(param, optimizer.state.get(param, {}), (), capturable=True)
            modes[id(param)] = _mode_of(optimizer, group, param)
            if id(param) not in there:
                missing.append(where)
    if missing:
        raise ValueError(
            f"{what}: {len(missing)} of the optimizer's {len(modes)} parameters are not in the "
            f"model, {missing[0]} is the first; pass the very model that is optimized (not a copy "
            "of it), or a torch.nn.ModuleList of all of its parts"
        )
    return modes


def _mode_of(optimizer: Any, group: dict[str, Any], param: torch.Tensor) -> str:
    if not param.requires_grad and not optimizer.state.get(param):
        return (
            "nearest" if param.dtype in modes.SIXTEEN_BIT else "none"
        )  # a frozen parameter of any dtype
    return modes.resolve_mode(optimizer.settings(group)["low_precision"], param.dtype)


def _full_value(
    param: torch.Tensor, kept: dict[str, Any], mode: str, device: torch.device | str | None
) -> torch.Tensor:
    """Return the value of a parameter and its state, in its math dtype; a DTensor for a DTensor."""

    def value_of(local: torch.Tensor) -> torch.Tensor:
        value = local
        if mode != "none":
            held, extra = state.held_extra(param, kept, mode)
            value = torch.empty_like(local, dtype=torch.float32)
            for _, (block, target, beside) in encoding.blocks([local, value, extra]):
                target.copy_(encoding.decode(block, beside, held))
        return value if device is None else value.to(device)

    return placement.with_part(param.detach(), value_of)


def _store_(param: torch.Tensor, kept: dict[str, Any], mode: str, value: torch.Tensor) -> None:
    """Make a parameter and its extra state stand for ``value``, as nearly as the mode can."""
    if mode == "stochastic":  # no step has random bits for this
        mode = "nearest"
    key = modes.extra_state(mode, param.dtype)
    extra = None if key is None else geometry.local_of(kept.get(key[0]))
    if extra is None and key is not None:  # the parameter was frozen before it had state
        mode = "nearest"
    if geometry.is_dtensor(param):
        value = placement.part_of(value, param.device_mesh, param.placements)
    here = geometry.local_of(param.detach())
    for first, (block, source, beside) in encoding.blocks([here, value, extra]):
        source = source.to(here.device, modes.math_dtype(here.dtype))
        encoding.encode_(block, beside, source, mode, None, first)
