"""The tensors an optimizer keeps per parameter: what they look like, and how they come to be."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from fused_optim import precision
from fused_optim.capturable import step_tensor
from fused_optim.eager import storage

_SHAPES = {
    "like": lambda shape: shape,
    "rows": lambda shape: shape[:-1],
    "cols": lambda shape: shape[:-2] + shape[-1:],
    "rows_keepdim": lambda shape: (*shape[:-1], 1),
    "cols_keepdim": lambda shape: (*shape[:-2], 1, shape[-1]),
    "scalar": lambda shape: (),
}

_MODE_OF_KEY = {"master": "master", "remainder": "split", "compensation": "kahan"}


@dataclasses.dataclass(frozen=True, slots=True)
class StateTensor:
    """One state tensor of a parameter.

    Attributes:
        key: in ``optimizer.state[p]``.
        field: of the `fused_optim.launch.TensorEntry` that hands it to a backend.
        dtype: of its storage.
        kind: a key of the table above: its shape, from the parameter's.
    """

    key: str
    field: str
    dtype: torch.dtype
    kind: str = "like"

    def shape(self, param: torch.Tensor) -> tuple[int, ...]:
        """Return the tensor's shape for ``param``."""
        return tuple(_SHAPES[self.kind](tuple(param.shape)))

    def zeros(self, param: torch.Tensor) -> torch.Tensor:
        """Return a new tensor of zeros for ``param``, in its memory format and on its device."""
        if self.kind == "like":
            return torch.zeros_like(param, dtype=self.dtype, memory_format=torch.preserve_format)
        return torch.zeros(self.shape(param), dtype=self.dtype, device=param.device)

    def converted(self, value: Any, param: torch.Tensor) -> torch.Tensor:
        """Return ``value``, a tensor or number, as this state tensor of ``param``.

        Raises:
            ValueError: its shape is another one, dimensions of size 1 left aside.
        """
        value, shape = torch.as_tensor(value), self.shape(param)
        if tuple(value.shape) != shape:
            if [n for n in value.shape if n != 1] != [n for n in shape if n != 1]:
                raise ValueError(
                    f"state {self.key!r} has shape {tuple(value.shape)}, but a parameter of shape "
                    f"{tuple(param.shape)} needs {shape}; load a state of the same model"
                )
            value = value.reshape(shape)
        return value.to(device=param.device, dtype=self.dtype)


def extra_tensor(mode: str, dtype: torch.dtype) -> tuple[StateTensor, ...]:
    """Return the state tensors, none or one, that a precision mode adds."""
    extra = precision.extra_state(mode, dtype)
    return () if extra is None else (StateTensor(extra[0], "extra", extra[1]),)


def ensure(
    param: torch.Tensor,
    state: dict[str, Any],
    spec: tuple[StateTensor, ...],
    capturable: bool = False,
) -> None:
    """Create what ``state`` lacks of ``spec`` and bring the rest to its dtype and device.

    A ``capturable`` parameter's step count is a tensor on its device, others' a Python int.
    A state made in another precision mode is carried over: its float32 value survives as far as
    the new mode can hold it.
    """
    step = state.get("step", 0)
    if capturable:
        if not isinstance(step, torch.Tensor) or step.device != param.device:
            state["step"] = step_tensor(step, param.device)
    elif "step" not in state:
        state["step"] = 0
    for tensor in spec:
        value = state.get(tensor.key)
        if value is None:
            state[tensor.key] = (
                _first_extra(tensor, param, state)
                if tensor.field == "extra"
                else tensor.zeros(param)
            )
        elif value.dtype is not tensor.dtype or value.device != param.device:
            state[tensor.key] = tensor.converted(value, param)
    for key in _MODE_OF_KEY:
        if key in state and not any(tensor.key == key for tensor in spec):
            del state[key]


def held_extra(
    param: torch.Tensor, state: dict[str, Any], mode: str
) -> tuple[str, torch.Tensor | None]:
    """Return the mode whose extra state a 16-bit parameter holds, and that state, on its device.

    It is ``mode``, unless the state was loaded from another mode's and no step made since; and
    ``"nearest"`` with None where there is no extra state.
    """
    held = {other: key for key, other in _MODE_OF_KEY.items() if key in state}
    if param.dtype is torch.float16:  # a bfloat16 run's remainder says nothing here
        held.pop("split", None)
    if mode not in held:
        mode = next(iter(held), "nearest")
    return mode, state[held[mode]].to(param.device) if held else None


def _first_extra(tensor: StateTensor, param: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    """Return new extra state for a parameter: from another mode's if there is one."""
    extra, mode = tensor.zeros(param), _MODE_OF_KEY[tensor.key]
    held, old = held_extra(param, state, mode)
    for first, (block, new, previous) in storage.blocks([param.detach(), extra, old]):
        shown = block.float()
        value = storage.decode(block, previous, held)
        # Where the new mode would show another value than the parameter's, the parameter wins.
        trial = torch.empty_like(block)
        storage.encode_(trial, new, value, mode, None, first)
        value = torch.where(trial == block, value, shown)
        storage.encode_(trial, new, value, mode, None, first)
    return extra
