"""The parameters of an optimizer that are split over processes, and over which ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from fused_optim import errors
from fused_optim.distributed import geometry, reduce
from fused_optim.distributed.reduce import Ranks
from fused_optim.plan.collect import numbered
from fused_optim.plan.owner import Owner


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A parameter of which other processes have other parts.

    Attributes:
        number: in ``state_dict`` order.
        dtype: of the parameter.
        shard: the part that is here.
        over: for each mesh dimension that the parameter is split over, the processes along it.
    """

    number: int
    dtype: torch.dtype
    shard: geometry.Shard
    over: dict[int, Ranks]

    def along(self, *dims: int) -> tuple[Ranks, ...]:
        """Return the processes along what some of the tensor's dimensions are split over."""
        found = sorted({mesh_dim for d in dims for mesh_dim in self.shard.split[d]})
        return tuple(self.over[mesh_dim] for mesh_dim in found)

    @property
    def everywhere(self) -> tuple[Ranks, ...]:
        """All processes that it is split over."""
        return tuple(self.over[dim] for dim in self.shard.over)

    def statistics(self) -> list[tuple[str, tuple[Ranks, ...], int]]:
        """Return what Adafactor adds up before F3: (name, over which processes, how many numbers).

        What no process has to add to is left out.
        """
        found = [("params", self.everywhere, 1)]
        shape = self.shard.shape
        if len(shape) > 1:
            batch = torch.Size(shape[:-2]).numel()
            found += [
                ("rows", self.along(-1), batch * shape[-2]),
                ("cols", self.along(-2), batch * shape[-1]),
                ("total", self.along(-2, -1), batch),
                ("old", self.along(-2), batch),
            ]
        return [one for one in found if one[1]]


class Spread:
    """The parameters of an optimizer that are split over processes.

    Attributes:
        members: in ``state_dict`` order; the same on every process.
        groups: every group of processes that one of them is split over.
    """

    def __init__(self, members: list[Member]) -> None:
        self.members = members
        self.groups = reduce.groups_of(member.everywhere for member in members)

    def __bool__(self) -> bool:
        return bool(self.members)

    def any(self, flag: torch.Tensor) -> torch.Tensor:
        """Return how many processes have a ``flag`` that is not 0: float32 ``[]``, where it is."""
        over = tuple(self.groups)
        if not over:
            return flag
        count = (flag != 0).to(torch.float32).reshape(1).to(over[0].device)
        reduce.reduce_([(over, count)])
        return count.reshape(()).to(flag.device)


def spread_of(optimizer: Owner) -> Spread:
    """Return the parameters that are split over processes.

    Raises:
        ValueError: a DTensor's placements can't be updated by any process alone.
    """
    members = []
    known: dict[Any, dict[int, Ranks]] = {}
    for group_index, index, param, number in numbered(optimizer):
        if not geometry.is_dtensor(param):
            continue
        where = errors.place(optimizer.param_groups[group_index], group_index, index)
        with errors.naming(f"{type(optimizer).__name__}: {where} "):
            shard = geometry.shard_of(param)
        if not shard.over:
            continue
        over = known.get((param.device_mesh, shard.over))
        if over is None:
            ranks = reduce.along(param.device_mesh, shard.over)
            over = dict(zip(shard.over, ranks, strict=True))
            known[param.device_mesh, shard.over] = over
        members.append(Member(number, param.dtype, shard, over))
    return Spread(members)
