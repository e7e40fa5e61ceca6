"""The state of a parameter: how its tensors come to be, and what another precision mode left."""

from __future__ import annotations

from typing import Any

import torch

from fused_optim.distributed import geometry, placement
from fused_optim.precision import encoding, modes, packed_state, repacking, state_values
from fused_optim.precision.state_tensor import StateTensor

_MODE_OF_KEY = {"master": "master", "remainder": "split", "compensation": "kahan"}


def extra_tensor(mode: str, dtype: torch.dtype) -> tuple[StateTensor, ...]:
    """Return the state tensors, none or one, that a precision mode adds."""
    extra = modes.extra_state(mode, dtype)
    return () if extra is None else (StateTensor(extra[0], "extra", extra[1], needed=False),)


def moment(
    key: str,
    field: str,
    dtype: torch.dtype,
    param: torch.Tensor,
    *,
    in_tiles: bool = False,
    **more: Any,
) -> StateTensor:
    """Return a moment of a parameter; float32 where ``dtype`` is uint8 and does not suit it.

    Args:
        key: of the state.
        field: of a backend's entry.
        dtype: of the storage.
        param: the parameter.
        in_tiles: whether an update walks through rows of matrices, which have to be whole blocks.
        **more: of the `StateTensor`.
    """
    if dtype is not torch.uint8:
        return StateTensor(key, field, dtype, **more)
    if packed_state.suits(param, in_tiles=in_tiles):
        return StateTensor(key, field, dtype, "records", **more)
    return StateTensor(key, field, torch.float32, **more)


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
            raise ValueError(
                f"state 'step' has shape {tuple(step.shape)}; it should be one number; "
                f"{state_values.REMEDY}"
            )
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
    step, device = state.get("step", 0), geometry.local_of(param).device
    if capturable:
        if not isinstance(step, torch.Tensor) or step.device != device:
            state["step"] = state_values.step_tensor(step, device)
    else:
        state["step"] = state_values.step_count(step)
    if any(tensor.repacks(state.get(tensor.key)) for tensor in spec):
        repacking.repack(param, state, spec)
    # Records are laid out by the elements' order, and what a kernel reads beside them as well.
    dense = any(tensor.kind == "records" for tensor in spec)
    for tensor in spec:
        value = state.get(tensor.key)
        if value is None:
            state[tensor.key] = (
                _first_extra(tensor, param, state)
                if tensor.field == "extra"
                else tensor.zeros(param)
            )
        elif value.dtype is not tensor.dtype or geometry.local_of(value).device != device:
            state[tensor.key] = tensor.converted(value, param)
        elif value.is_inference() and not torch.is_inference_mode_enabled():
            # A clone may be written to outside of that mode.
            state[tensor.key] = placement.with_part(value, torch.Tensor.clone)
        elif dense and not geometry.local_of(value).is_contiguous():
            state[tensor.key] = placement.with_part(value, torch.Tensor.contiguous)
    for key in _MODE_OF_KEY:
        if key in state and not any(tensor.key == key for tensor in spec):
            del state[key]


def held_extra(
    param: torch.Tensor, state: dict[str, Any], mode: str
) -> tuple[str, torch.Tensor | None]:
    """Return the mode whose extra state a 16-bit parameter holds, and the part of it that is here.

    It is ``mode``, unless the state was loaded from another mode's and no step made since; and
    ``"nearest"`` with None where there is no extra state.
    """
    held = {other: key for key, other in _MODE_OF_KEY.items() if key in state}
    if param.dtype is torch.float16:  # a bfloat16 parameter's remainder means nothing here
        held.pop("split", None)
    if mode not in held:
        mode = next(iter(held), "nearest")
    if not held:
        return mode, None
    return mode, geometry.local_of(state[held[mode]]).to(geometry.local_of(param).device)


def drop_what_says_nothing(param: torch.Tensor, state: dict[str, Any], mode: str) -> None:
    """Remove a mode's extra state from a loaded ``state`` that has another mode's too.

    torch.distributed.checkpoint creates state before it loads, and adds the dict's state to it.
    The created extra state holds no more than the parameter does; the dict's may hold more.
    """
    held = {other: key for key, other in _MODE_OF_KEY.items() if key in state}
    if mode not in held or len(held) == 1:
        return
    extra = geometry.local_of(state[held[mode]])
    for _, (block, beside) in encoding.blocks([geometry.local_of(param).detach(), extra]):
        if not torch.equal(encoding.decode(block, beside, mode), block.float()):
            return
    del state[held[mode]]


def _first_extra(tensor: StateTensor, param: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    """Return new extra state for a parameter, converted from another mode's if there is any."""
    extra, mode = tensor.zeros(param), _MODE_OF_KEY[tensor.key]
    held, old = held_extra(param, state, mode)
    tensors = [geometry.local_of(param).detach(), geometry.local_of(extra), old]
    for first, (block, new, previous) in encoding.blocks(tensors):
        shown = block.float()
        value = encoding.decode(block, previous, held)
        # The parameter wins where the new mode would store it with another value.
        trial = torch.empty_like(block)
        encoding.encode_(trial, new, value, mode, None, first)
        value = torch.where(trial == block, value, shown)
        encoding.encode_(trial, new, value, mode, None, first)
    return extra
