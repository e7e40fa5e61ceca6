"""Factored Adafactor in plain PyTorch: transformers' and torch's semantics by the row's scalars.

The ops are the stages of the kernel contract (section 6). A stage hands its results to the next one
in the bucket's scratch. Large tensors go through the stages in tiles. The finalise op makes the
whole step of small tensors, a few at a time, while they are in cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fused_optim.precision.encoding import block_size

from . import adafactor_stages as stages
from .adafactor_work import Work, begin
from .gradients import skipped


def adafactor_statistics(bucket, launch) -> torch.Tensor | None:
    """Run F1 and F2: sums of squares of gradients and parameters.

    Returns:
        ``[entries]``: the sum of squares of each gradient, not clipped, where that is wanted.
    """
    bucket.scratch = [begin(bucket, launch, index) for index in range(len(bucket.entries))]
    if not launch.sums_wanted:
        stages.sum_squares(_large(bucket))
        return None
    sums = stages.sum_squares(bucket.scratch, gradients=True)
    return torch.stack(sums).to(bucket.scratch[0].dtype)


def adafactor_finalise_(bucket, launch) -> None:
    """Run F3 to F5: advance the statistics and find each tensor's step size before clipping.

    Small tensors go through F6 to F10 here too.
    """
    if skipped(launch):
        return
    for works in _batches(bucket):
        if not launch.sums_wanted:
            stages.sum_squares(works)
        stages.finalise_(works, launch)
        stages.sum_updates(works, keep=True)
        stages.scale(works)
        stages.apply_(works)
    stages.finalise_(_large(bucket), launch)


def adafactor_update_sums(bucket, launch) -> None:
    """Run F6: the sum of squares of each update, before it is scaled."""
    if not skipped(launch):
        stages.sum_updates(_large(bucket))


def adafactor_apply_(bucket, launch) -> None:
    """Run F7 to F10: scale the updates and write the parameters."""
    if skipped(launch):
        return
    works = _large(bucket)
    stages.scale(works)
    stages.apply_(works)
    bucket.scratch = None


def shard_sums(bucket, index: int) -> dict[str, torch.Tensor]:
    """Return what of F1 and F2 of a part of a tensor is to be added up over processes, to write to.

    ``rows`` and ``cols`` are sums of squares of the gradient, ``total`` of the rows' means of
    these, ``old`` of row statistics, ``params`` of squares of the parameter.
    """
    work = bucket.scratch[index]
    sums = {"params": work.p_sum}
    if work.factored:
        sums.update(rows=work.row_sum, cols=work.col_sum, total=work.total, old=work.old)
    return sums


def shard_update_sum(bucket, index: int) -> torch.Tensor | None:
    """Return F6 of a part of a tensor, to be added up and written to; None in a skipped step."""
    return bucket.scratch[index].u_sum


def _large(bucket) -> list[Work]:
    return [work for work in bucket.scratch if len(work.tiles) > 1 or work.split]


def _batches(bucket) -> Iterator[list[Work]]:
    """Yield the tensors of one tile each, in groups that together fill a block."""
    limit, numel = block_size(bucket.key.device), 0
    batch: list[Work] = []
    for work in bucket.scratch:
        if len(work.tiles) != 1 or work.split:
            continue
        if batch and numel + work.grad.numel() > limit:
            yield batch
            batch, numel = [], 0
        batch.append(work)
        numel += work.grad.numel()
    if batch:
        yield batch
