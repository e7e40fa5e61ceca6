"""Placements of what is derived from a parameter, and DTensors made of parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fused_optim.distributed.geometry import arrived, is_dtensor, local_of, ranks, shard_at


def fault_of_place(value: torch.Tensor, mesh: Any, placements: Sequence[Any]) -> str | None:
    """Return what is wrong with a DTensor that should lie as given; None if nothing is."""
    if value.device_mesh != mesh:
        return f"is on the mesh {ranks(value.device_mesh)}, its parameter on that {ranks(mesh)}"
    if tuple(value.placements) != tuple(placements):
        return f"has placements {value.placements}, not {tuple(placements)}"
    return None


def part_of(value: torch.Tensor, mesh: Any, placements: Sequence[Any]) -> torch.Tensor:
    """Return this process's part of a whole tensor, or of a DTensor of the same mesh.

    Raises:
        ValueError: ``value`` is a DTensor of another mesh; the message does not name it.
    """
    if not is_dtensor(value):
        mine = shard_at(mesh, placements, value.shape)
        return mine.box_of(value).clone(memory_format=torch.contiguous_format)
    if value.device_mesh != mesh:
        raise ValueError(
            f"{fault_of_place(value, mesh, placements)}; load a state of this mesh, or a full one"
        )
    if tuple(value.placements) != tuple(placements):
        value = value.redistribute(placements=placements)
    return arrived(local_of(value))


def without_dim(placements: Sequence[Any], ndim: int, dim: int, *, keepdim: bool) -> tuple:
    """Return the placements of a tensor once a dimension is summed.

    What the tensor was split over there holds the same sums everywhere.

    Args:
        placements: of the tensor.
        ndim: its number of dimensions.
        dim: which one is summed.
        keepdim: whether that dimension stays, with size 1.
    """
    found = []
    for placement in placements:
        if placement.is_replicate():
            found.append(placement)
        elif placement.dim % ndim == dim:
            found.append(_replicate())
        else:
            at = placement.dim % ndim
            found.append(_at(placement, at - (at > dim and not keepdim)))
    return tuple(found)


def _replicate() -> Any:
    from torch.distributed.tensor import Replicate

    return Replicate()


def _at(placement: Any, dim: int) -> Any:
    """Return a shard placement on another dimension."""
    if hasattr(placement, "split_factor"):
        return type(placement)(dim, split_factor=placement.split_factor)
    return type(placement)(dim)


def wrapped(
    local: torch.Tensor, mesh: Any, placements: Sequence[Any], shape: Sequence[int]
) -> torch.Tensor:
    """Return a DTensor whose part here is ``local``, on whatever device that is.

    ``DTensor.from_local`` would move it to the mesh's device, where offloaded parameters are not.
    """
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    strides = torch.empty(shape, device="meta").stride()
    meta = TensorMeta(torch.Size(shape), strides, local.dtype)
    return DTensor(local, DTensorSpec(mesh, tuple(placements), meta), requires_grad=False)


def with_part(tensor: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a tensor like ``tensor``, a DTensor or not, of what ``change`` makes of its part."""
    local = local_of(tensor)
    new = change(local)
    if not is_dtensor(tensor):
        return new
    if new is local:
        return tensor
    return wrapped(new, tensor.device_mesh, tensor.placements, tensor.shape)
