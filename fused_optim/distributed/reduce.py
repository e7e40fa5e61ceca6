"""Sums over the processes that hold the parts of a tensor: one all-reduce for each group."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch


@dataclasses.dataclass(frozen=True, slots=True)
class Ranks:
    """Processes that hold a part each of the same tensors.

    Attributes:
        ranks: their global ranks; two groups of the same processes are equal.
        group: the process group of ``torch.distributed``.
        device: where its collectives take place.
    """

    ranks: tuple[int, ...]
    group: Any = dataclasses.field(compare=False)
    device: torch.device = dataclasses.field(compare=False)


def along(mesh: Any, dims: Iterable[int]) -> tuple[Ranks, ...]:
    """Return this process's group in each of some dimensions of a mesh."""
    found = []
    device = torch.device(mesh.device_type)
    if device.type not in ("cpu", "meta"):
        device = torch.device(device.type, torch.get_device_module(device).current_device())
    for dim in dims:
        group = mesh.get_group(dim)
        found.append(Ranks(tuple(torch.distributed.get_process_group_ranks(group)), group, device))
    return tuple(found)


class Sums:
    """Summands of this process, in an order that all processes have in common, and then the sums.

    What is added up over the same groups lies side by side, and what is added up over a group of
    ranks, perhaps over others too, takes one all-reduce.

    Args:
        slots: by their names, the groups that a slot is added up over, one after another, and how
            many numbers it has. All processes of a group name the same slots in the same order.
        dtype: of the summands.
    """

    def __init__(
        self, slots: Iterable[tuple[Hashable, tuple[Ranks, ...], int]], dtype: torch.dtype
    ) -> None:
        self._place: dict[Hashable, tuple[tuple[Ranks, ...], int, int]] = {}
        sizes: dict[tuple[Ranks, ...], int] = {}
        for name, over, size in slots:
            start = sizes.setdefault(over, 0)
            self._place[name] = over, start, size
            sizes[over] += size
        self.buffers = {
            over: torch.zeros(size, dtype=dtype, device=over[0].device)
            for over, size in sizes.items()
        }

    def __contains__(self, name: Hashable) -> bool:
        return name in self._place

    def __getitem__(self, name: Hashable) -> torch.Tensor:
        """Return a slot, a view ``[size]``."""
        over, start, size = self._place[name]
        return self.buffers[over][start : start + size]

    def place(self, name: Hashable) -> tuple[tuple[Ranks, ...], int]:
        """Return a slot's key in ``buffers``, and where it begins there."""
        return self._place[name][:2]


def together(sums: Sequence[Sums]) -> None:
    """Add up what all processes have in the slots of some `Sums` of one dtype."""
    reduce_([item for one in sums for item in one.buffers.items()])


def groups_of(keys: Iterable[tuple[Ranks, ...]]) -> list[Ranks]:
    """Return every group once, in the order of their first occurrence."""
    return list(dict.fromkeys(one for over in keys for one in over))


def reduce_(buffers: Sequence[tuple[tuple[Ranks, ...], torch.Tensor]]) -> None:
    """Add up each tensor over all its groups, in place; one all-reduce for each group."""
    for one in groups_of(over for over, _ in buffers):
        mine = [buffer for over, buffer in buffers if one in over and len(buffer)]
        if len(mine) == 1 and mine[0].device == one.device:
            torch.distributed.all_reduce(mine[0], group=one.group)
            continue
        joined = torch.cat([buffer.to(one.device) for buffer in mine])
        torch.distributed.all_reduce(joined, group=one.group)
        sizes = [len(buffer) for buffer in mine]
        for buffer, reduced in zip(mine, joined.split(sizes), strict=True):
            buffer.copy_(reduced)
