"""Finds the norm of all gradients together, those of other processes included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from fused_optim import errors

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


def total_norm(
    sums: Sequence[torch.Tensor],
    group: ProcessGroup | None,
    param_groups: Sequence[dict[str, Any]],
) -> torch.Tensor:
    """Return the norm of the gradients with these sums of squares, and of other ranks' gradients.

    Args:
        sums: each bucket's sums of squares; there are none where no parameter has a gradient.
        group: the ranks that hold the other gradients, all of which call this; or None.
        param_groups: the optimizer's, which tell the device where there are no sums.

    Returns:
        ``[]`` on the first sums' device, the same on every rank.
    """
    if sums:
        total = torch.stack([s.sum().to(sums[0].device) for s in sums]).sum()
    else:
        devices = [param.device for one in param_groups for param in one["params"]]
        device = devices[0] if devices else torch.device("cpu")
        total = torch.zeros((), dtype=torch.float32, device=device)
    if group is not None:
        # The sum is float64 on every rank, as the gradients' dtypes may differ between ranks.
        over_ranks = total.double()
        torch.distributed.all_reduce(over_ranks, group=group)
        total = over_ranks.to(total.dtype)
    return total.sqrt()
