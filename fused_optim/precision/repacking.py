"""Turns moments of a state from records into floats and back, as options or dicts differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from fused_optim.distributed import geometry, placement
from fused_optim.precision import eight_bit
from fused_optim.precision.modes import is_packed
from fused_optim.precision.packed_state import stored_shape
from fused_optim.precision.state_tensor import StateTensor

_NEAREST = 0x8000  # instead of random bits


def unpacked(
    state: dict[str, Any], spec: tuple[StateTensor, ...], shape: tuple[int, ...]
) -> dict[str, Any]:
    """Return a state in which moments that are records are float32 tensors of ``shape``.

    Records may be a DTensor's parts, which consist of rows of ``shape``.
    """
    result = dict(state)
    seconds: dict[str, torch.Tensor] = {}
    for tensor in sorted(spec, key=lambda one: one.unit is not None):  # units come before
        value = state.get(tensor.key)
        if not is_packed(value):
            continue
        records = geometry.local_of(value).reshape(-1, eight_bit.RECORD)
        if tensor.field == "exp_avg":
            second = seconds.get(tensor.unit)
            if second is None and state.get(tensor.unit) is not None:
                second = eight_bit.in_blocks(geometry.local_of(state[tensor.unit]).float())
            floats = eight_bit.decode_first(records, second)
        else:
            floats = seconds[tensor.key] = eight_bit.decode_second(records)
        if geometry.is_dtensor(value):
            mesh, placements = value.device_mesh, value.placements
            here = geometry.shard_at(mesh, placements, shape).shape
            floats = floats.view(here)
            result[tensor.key] = placement.wrapped(floats, mesh, placements, shape)
        else:
            result[tensor.key] = floats.view(-1)[: math.prod(shape)].view(shape)
    return result


def readable(
    saved: Mapping[str, Any], spec: tuple[StateTensor, ...], param: torch.Tensor
) -> Mapping[str, Any]:
    """Return a saved state in a form that each of its tensors can be converted from by itself.

    Records stay what they are where a parameter's moments are records too, whose shape is the same.

    Raises:
        ValueError: records have another shape than a parameter of this shape has.
    """
    moments = [one for one in spec if one.is_moment and is_packed(saved.get(one.key))]
    shape = stored_shape(tuple(param.shape))
    for tensor in moments:
        found = tuple(saved[tensor.key].shape)
        if found != shape:
            raise ValueError(
                f"state {tensor.key!r} is in 8 bits and has shape {found}, but that of a parameter "
                f"of shape {tuple(param.shape)} has {shape}; load a state of the same model"
            )
    if all(tensor.kind == "records" for tensor in moments):
        return saved
    return unpacked(dict(saved), spec, tuple(param.shape))


def repack(param: torch.Tensor, state: dict[str, Any], spec: tuple[StateTensor, ...]) -> None:
    """Bring moments to the form that ``spec`` wants: records of floats, or floats of records.

    A first moment is in units of the second, so where one of them changes both are coded anew.
    """
    moments = [tensor for tensor in spec if tensor.is_moment and state.get(tensor.key) is not None]
    if not any(one.repacks(state[one.key]) for one in moments):
        return
    floats = unpacked(state, spec, tuple(param.shape))
    seconds: dict[str, torch.Tensor] = {}
    for tensor in sorted(moments, key=lambda one: one.unit is not None):
        value = floats[tensor.key]
        if tensor.kind == "records":
            blocks = eight_bit.in_blocks(geometry.local_of(value).float())
            half = torch.full_like(blocks, _NEAREST, dtype=torch.int32)
            if tensor.field == "exp_avg":
                records = eight_bit.encode_first(blocks, seconds.get(tensor.unit), half)
            else:
                records = eight_bit.encode_second(blocks, half)
                seconds[tensor.key] = eight_bit.decode_second(records)
            value = tensor.zeros(param)
            geometry.local_of(value).view(-1, eight_bit.RECORD).copy_(records)
        state[tensor.key] = value
