"""Which part of a whole tensor a DTensor holds in this process."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch

LOCAL = "_local_tensor"
"""Where a DTensor holds its part. ``to_local()`` would be an operator of autograd."""


@dataclasses.dataclass(frozen=True, slots=True)
class Shard:
    """A box of a whole tensor: the part that this process holds.

    Attributes:
        whole: the shape of the whole tensor.
        shape: of the box.
        start: where the box's first element is in the whole, by dimension.
        split: for each dimension of the tensor, the mesh dimensions that it is split over: those of
            more than one process, and none where the whole is empty. Processes that differ in other
            mesh dimensions hold the same box.
    """

    whole: tuple[int, ...]
    shape: tuple[int, ...]
    start: tuple[int, ...]
    split: tuple[tuple[int, ...], ...]

    @property
    def numel(self) -> int:
        """The number of elements of the whole."""
        return math.prod(self.whole)

    @property
    def strides(self) -> list[int]:
        """What a step in each dimension adds to an element's logical index in the whole."""
        strides = [1] * len(self.whole)
        for d in range(len(self.whole) - 2, -1, -1):
            strides[d] = strides[d + 1] * self.whole[d + 1]
        return strides

    @property
    def first_element(self) -> int:
        """The logical index of the box's first element in the whole."""
        return sum(s * stride for s, stride in zip(self.start, self.strides, strict=True))

    @property
    def in_order(self) -> bool:
        """Whether element i of the box is element ``first_element + i`` of the whole."""
        longer = [d for d, size in enumerate(self.shape) if size != 1]
        inner = range(longer[0] + 1, len(self.shape)) if longer else ()
        return 0 in self.shape or all(self.shape[d] == self.whole[d] for d in inner)

    @property
    def over(self) -> tuple[int, ...]:
        """All mesh dimensions that the tensor is split over, in order."""
        return tuple(sorted({dim for dims in self.split for dim in dims}))

    def elements(self, first: int, count: int, device: torch.device) -> torch.Tensor:
        """Return where in the whole elements of the box are: logical indices, int64 ``[count]``.

        Args:
            first: an element of the box, by its logical index there.
            count: how many elements, consecutive in the box.
            device: where the result lives.
        """
        if self.in_order:
            first += self.first_element
            return torch.arange(first, first + count, dtype=torch.int64, device=device)
        rest = torch.arange(first, first + count, dtype=torch.int64, device=device)
        found = torch.full_like(rest, self.first_element)
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            found += rest % size * stride
            rest = rest // size
        return found

    def box_of(self, whole: torch.Tensor) -> torch.Tensor:
        """Return the view of a whole tensor that this box is."""
        places = zip(self.start, self.shape, strict=True)
        return whole[tuple(slice(start, start + size) for start, size in places)]


def is_dtensor(tensor: Any) -> bool:
    """Return whether a tensor is a DTensor, whose shape is not that of its memory here."""
    return hasattr(tensor, "device_mesh")


def local_of(tensor: Any) -> Any:
    """Return what this process holds of a DTensor; anything else as it is."""
    return getattr(tensor, LOCAL) if is_dtensor(tensor) else tensor


def arrived(local: torch.Tensor) -> torch.Tensor:
    """Return the part of a DTensor once the collective that it may be the result of is done."""
    return local.wait() if hasattr(local, "trigger_wait") else local


def shard_of(tensor: torch.Tensor) -> Shard | None:
    """Return where this process's part of a DTensor lies in the whole; None for other tensors.

    Raises:
        ValueError: the placements say that no process has a box of the whole that it alone (or with
            its replicas) is to update. The message does not name the tensor.
    """
    if not is_dtensor(tensor):
        return None
    mesh, placements = tensor.device_mesh, tensor.placements
    if mesh.get_coordinate() is None:
        raise ValueError(
            f"is a DTensor of a mesh {ranks(mesh)} that this process is not in; give each process "
            "the parameters that it holds a part of"
        )
    order = getattr(tensor._spec, "shard_order", None) or ()
    if any(list(entry.mesh_dims) != sorted(entry.mesh_dims) for entry in order):
        raise ValueError(
            f"is a DTensor that is split in the order {order}, and only the order of the mesh's "
            "dimensions can be updated; redistribute it to that"
        )
    shard = shard_at(mesh, placements, tensor.shape)
    local = tuple(getattr(tensor, LOCAL).shape)
    if local != shard.shape:
        raise ValueError(
            f"is a DTensor of shape {tuple(tensor.shape)} with placements {placements}, of which "
            f"this process should hold {shard.shape} but has {local}; pass shape= and stride= to "
            "DTensor.from_local, or use distribute_tensor"
        )
    return shard


def shard_at(mesh: Any, placements: Sequence[Any], whole: Sequence[int]) -> Shard:
    """Return this process's part of a tensor of shape ``whole``, were it placed so on a mesh."""
    return _shard(tuple(mesh.shape), tuple(mesh.get_coordinate()), tuple(placements), tuple(whole))


@functools.lru_cache(maxsize=4096)
def _shard(
    mesh: tuple[int, ...], here: tuple[int, ...], placements: tuple, whole: tuple[int, ...]
) -> Shard:
    """Return the box at a place of a mesh, from sizes alone, so that no mesh is kept alive."""
    bounds = [(0, size) for size in whole]
    split: list[tuple[int, ...]] = [() for _ in whole]
    for dim in _in_order_of_splitting(mesh, placements):
        axis = placements[dim].dim % len(whole)
        begin, end = bounds[axis]
        size = -(-(end - begin) // mesh[dim])  # as torch.chunk
        first = min(begin + size * here[dim], end)
        bounds[axis] = first, min(first + size, end)
        if mesh[dim] > 1 and 0 not in whole:
            split[axis] = tuple(sorted((*split[axis], dim)))
    return Shard(
        whole,
        tuple(end - begin for begin, end in bounds),
        tuple(begin for begin, _ in bounds),
        tuple(split),
    )


def _in_order_of_splitting(mesh: tuple[int, ...], placements: tuple) -> list[int]:
    """Return the mesh dimensions that split a tensor, in the order in which they do.

    That is their own order, but for strided shards: FSDP2 on top of tensor parallelism splits what
    the latter left, though its mesh dimension comes first. A split factor is the number of shards
    that later mesh dimensions have made before.
    """
    order: list[int] = []
    for dim in reversed(range(len(mesh))):
        placement = placements[dim]
        if placement.is_partial():
            raise ValueError(
                f"is a DTensor with placements {placements}: each process of mesh dimension {dim} "
                "holds a summand of it, and an update of a summand is not one of the sum; "
                "redistribute it to Replicate() or Shard()"
            )
        if placement.is_replicate():
            continue
        place, made, factor = 0, 1, getattr(placement, "split_factor", 1)
        while made < factor and place < len(order):
            made *= mesh[order[place]] if placements[order[place]].dim == placement.dim else 1
            place += 1
        if made != factor:
            raise ValueError(
                f"is a DTensor with placements {placements} on a mesh of shape {mesh}: a strided "
                f"shard that is not what {factor} earlier shards leave, so its elements may not "
                "be consecutive; redistribute it to Shard()"
            )
        order.insert(place, dim)
    return order


def ranks(mesh: Any) -> str:
    """Return how messages call a mesh."""
    return f"of ranks {mesh.mesh.tolist()}"
