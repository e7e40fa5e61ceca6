"""The tensors that an optimizer keeps for each parameter: their shapes, dtypes and creation."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from fused_optim.precision import checks, encoding, modes, state_values

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
        field: of the `fused_optim.backends.interface.TensorEntry` that hands it to a backend.
        dtype: of its storage.
        kind: a key of the table above, which gives the shape.
        needed: whether a saved state without it is incomplete.
        may_begin_late: whether the tensor may begin as zeros after the parameter has made steps,
            for example because an option was turned on in the middle of training.
    """

    key: str
    field: str
    dtype: torch.dtype
    kind: str = "like"
    needed: bool = True
    may_begin_late: bool = False

    def shape(self, param: torch.Tensor) -> tuple[int, ...]:
        """Return the tensor's shape for ``param``."""
        return tuple(_SHAPES[self.kind](tuple(param.shape)))

    def zeros(self, param: torch.Tensor) -> torch.Tensor:
        """Return a new tensor of zeros for ``param``, in its memory format and on its device."""
        if self.kind == "like":
            return torch.zeros_like(param, dtype=self.dtype, memory_format=torch.preserve_format)
        return torch.zeros(self.shape(param), dtype=self.dtype, device=param.device)

    def converted(self, value: Any, param: torch.Tensor) -> torch.Tensor:
        """Return ``value``, a tensor, number or list, as this state tensor of ``param``.

        Raises:
            ValueError: it is none of these, not of real numbers, or has another shape, dimensions
                of size 1 left aside.
        """
        value, shape = state_values.as_tensor(self.key, value, param.device), self.shape(param)
        if tuple(value.shape) != shape:
            if [n for n in value.shape if n != 1] != [n for n in shape if n != 1]:
                raise ValueError(
                    f"state {self.key!r} has shape {tuple(value.shape)}, but a parameter of shape "
                    f"{tuple(param.shape)} needs {shape}; load a state of the same model"
                )
            value = value.reshape(shape)
        missing = checks.memory_missing(value)
        if missing is not None:
            raise ValueError(f"state {self.key!r} {missing}; load a state that is in memory")
        if checks.overlaps(value):
            value = value.clone(memory_format=torch.contiguous_format)
        if self.key == "remainder":
            value = state_values.remainder_bits(value)
        return value.to(device=param.device, dtype=self.dtype)

    def check(self, value: Any, param: torch.Tensor) -> None:
        """Refuse a value that no update of ``param`` could read.

        Another dtype or device is no fault, as `ensure` converts the tensor.

        Raises:
            ValueError: ``value`` is no dense tensor of real numbers in this tensor's shape, with
                memory of its own for each element.
        """
        if value is None:
            return
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"state {self.key!r} is {value!r}, not a tensor; {state_values.REMEDY}"
            )
        state_values.check_kind(self.key, value, param.device)
        if tuple(value.shape) != self.shape(param):
            raise ValueError(
                f"state {self.key!r} has shape {tuple(value.shape)}, but the parameter has shape "
                f"{tuple(param.shape)} and needs {self.shape(param)}: one of them was replaced or "
                f"resized; {state_values.REMEDY}"
            )
        fault = checks.memory_fault(value)
        if fault is not None:
            raise ValueError(f"state {self.key!r} {fault}; {state_values.REMEDY}")


def extra_tensor(mode: str, dtype: torch.dtype) -> tuple[StateTensor, ...]:
    """Return the state tensors, none or one, that a precision mode adds."""
    extra = modes.extra_state(mode, dtype)
    return () if extra is None else (StateTensor(extra[0], "extra", extra[1], needed=False),)


def every_extra(dtype: torch.dtype) -> tuple[StateTensor, ...]:
    """Return the state tensors that precision modes may add to a parameter of ``dtype``."""
    return tuple(one for mode in _MODE_OF_KEY.values() for one in extra_tensor(mode, dtype))


def check(
    param: torch.Tensor, state: dict[str, Any], spec: tuple[StateTensor, ...], capturable: bool
) -> None:
    """Refuse a parameter's state that a step could not use; changes nothing.

    Loading has checked the state, but a user may have replaced state or parameter since. The step
    count of a ``capturable`` parameter is on the device, and is not read.

    Raises:
        ValueError: a tensor does not fit the parameter, the step count is no count, or a moment is
            missing of a parameter that has made steps.
    """
    for tensor in {one.key: one for one in (*every_extra(param.dtype), *spec)}.values():
        tensor.check(state.get(tensor.key), param)
    if not state:
        return
    step = state.get("step", 0)
    needed = [tensor.key for tensor in spec if tensor.needed and not tensor.may_begin_late]
    if capturable and isinstance(step, torch.Tensor):
        if step.numel() != 1:
            raise ValueError(f"state 'step' has shape {tuple(step.shape)}; it should be one number")
        started = any(state.get(key) is not None for key in needed)
    else:
        started = state_values.step_count(step) > 0
    if started:
        state_values.check_complete(state, needed)


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
            state["step"] = state_values.step_tensor(step, param.device)
    else:
        state["step"] = state_values.step_count(step)
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
        elif value.is_inference() and not torch.is_inference_mode_enabled():
            state[tensor.key] = value.clone()  # which can be written to outside inference mode
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
    if param.dtype is torch.float16:  # a bfloat16 parameter's remainder means nothing here
        held.pop("split", None)
    if mode not in held:
        mode = next(iter(held), "nearest")
    return mode, state[held[mode]].to(param.device) if held else None


def drop_what_says_nothing(param: torch.Tensor, state: dict[str, Any], mode: str) -> None:
    """Remove a mode's extra state from a loaded ``state`` that has another mode's too.

    torch.distributed.checkpoint creates state before it loads, and adds the dict's state to it.
    The created extra state holds no more than the parameter does; the dict's may hold more.
    """
    held = {other: key for key, other in _MODE_OF_KEY.items() if key in state}
    if mode not in held or len(held) == 1:
        return
    extra = state[held[mode]]
    for _, (block, beside) in encoding.blocks([param.detach(), extra]):
        if not torch.equal(encoding.decode(block, beside, mode), block.float()):
            return
    del state[held[mode]]


def _first_extra(tensor: StateTensor, param: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    """Return new extra state for a parameter, converted from another mode's if there is any."""
    extra, mode = tensor.zeros(param), _MODE_OF_KEY[tensor.key]
    held, old = held_extra(param, state, mode)
    for first, (block, new, previous) in encoding.blocks([param.detach(), extra, old]):
        shown = block.float()
        value = encoding.decode(block, previous, held)
        # The parameter wins where the new mode would store it with another value.
        trial = torch.empty_like(block)
        encoding.encode_(trial, new, value, mode, None, first)
        value = torch.where(trial == block, value, shown)
        encoding.encode_(trial, new, value, mode, None, first)
    return extra
