"""Finds the norm of all gradients together, those of other processes included."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from fused_optim import errors
from fused_optim.distributed import geometry
from fused_optim.distributed.reduce import Ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def check_group(group: Any) -> None:
    """Refuse anything but None and a process group of ``torch.distributed``."""
    if group is None:
        return
    if not (torch.distributed.is_available() and isinstance(group, torch.distributed.ProcessGroup)):
        raise TypeError(
            f"Invalid clip_group: {group!r} - should be a process group, such as "
            "torch.distributed.group.WORLD, whose ranks hold a part of the gradients each"
        )


def check_whole(optimizer: Any, pending: list) -> None:
    """Refuse to clip by the norm of a shard.

    Args:
        optimizer: an optimizer that clips and has no ``clip_group``.
        pending: what its step updates, see `fused_optim.plan.collect.Pending`.

    Raises:
        RuntimeError: FullyShardedDataParallel has split a parameter; nothing was changed.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    if torch.distributed.get_world_size() == 1:
        return
    for group_index, index, param, _, _ in pending:
        if is_flat_shard(param):
            where = errors.place(optimizer.param_groups[group_index], group_index, index)
            raise RuntimeError(
                f"{type(optimizer).__name__}: {where} is a shard of FullyShardedDataParallel's, so "
                "its gradient's norm is not that of the whole. Pass clip_group= with the process "
                "group that it is sharded over (torch.distributed.group.WORLD by default), or "
                "leave out the clipping option and call model.clip_grad_norm_() before step()"
            )


def is_flat_shard(param: torch.Tensor) -> bool:
    """Return whether a parameter is this rank's part of one that FSDP1 has flattened."""
    return getattr(param, "_fsdp_flattened", False)


@dataclasses.dataclass
class Squares:
    """The sums of squares of a step's gradients.

    Attributes:
        each: for each bucket, ``[entries]``; of a part of a tensor, that of the whole.
        together: tensors that add up to the sum of all, of each tensor once.
    """

    each: list[torch.Tensor]
    together: list[torch.Tensor]


def check_apart(group: ProcessGroup | None, split_over: Sequence[Ranks]) -> None:
    """Refuse a ``clip_group`` over whose ranks DTensors are split, and so summed already.

    Raises:
        ValueError: both have a pair of ranks in common.
    """
    if group is None:
        return
    ranks = set(torch.distributed.get_process_group_ranks(group))
    for one in split_over:
        common = sorted(ranks.intersection(one.ranks))
        if len(common) > 1:
            raise ValueError(
                f"clip_group has the ranks {common}, over which parameters are split that are "
                "DTensors. The norm of these is added up without it; leave out clip_group, or pass "
                "the group over which gradients are spread besides, as by pipeline parallelism"
            )


def total_norm(
    sums: Sequence[torch.Tensor],
    group: ProcessGroup | None,
    param_groups: Sequence[dict[str, Any]],
) -> torch.Tensor:
    """Return the norm of gradients whose squares add up to ``sums``, and to those of other ranks.

    Args:
        sums: tensors that add up to the sum of squares; none where no parameter has a gradient.
        group: the ranks that hold the other gradients, all of which call this; or None.
        param_groups: of the optimizer; they tell the device where there are no sums.

    Returns:
        ``[]`` on the first sums' device, the same on every rank.
    """
    if sums:
        device, dtype = sums[0].device, sums[0].dtype
        if any(one.dtype is not dtype for one in sums):  # those of DTensors are float64
            sums = [one.double() for one in sums]
        total = torch.stack([s.sum().to(device) for s in sums]).sum()
    else:
        devices = [
            geometry.local_of(param).device for one in param_groups for param in one["params"]
        ]
        device = devices[0] if devices else torch.device("cpu")
        dtype = torch.float32
        total = torch.zeros((), dtype=dtype, device=device)
    if group is not None:
        # In float64 whatever the gradients' dtype, which ranks may not have in common.
        total = total.double()
        torch.distributed.all_reduce(total, group=group)
    return total.sqrt().to(dtype)
