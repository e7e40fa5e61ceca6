"""Packs the maps that kernels walk: each work item's tensor, and its part of that tensor."""

from __future__ import annotations

import torch

from fused_optim.backends.interface import Counts, Shape
from fused_optim.plan.records import columns

SIZES = columns("batch", "rows", "cols", "numel")
"""Columns of a record that hold the shape by which a backend counts."""

WHOLE = columns("global_numel", "global_rows", "global_cols")
"""Columns of a record that hold the sizes of the unsharded tensor."""

_LOCAL = columns("numel", "rows", "cols")


def counted(records: torch.Tensor, counts: Counts) -> list[int]:
    """Return the count of each record's tensor, 0 for an empty one."""
    sharded = not torch.equal(records[:, _LOCAL], records[:, WHOLE])
    return [
        counts(Shape(batch, rows, cols, sharded)) if numel else 0
        for batch, rows, cols, numel in records[:, SIZES].tolist()
    ]


def packed(records: torch.Tensor, counts: Counts) -> torch.Tensor:
    """Return int32 ``[sum of counts, 2]`` on the host: (tensor, 0 .. count - 1)."""
    count = torch.tensor(counted(records, counts), dtype=torch.int64, device="cpu")
    tensor = torch.repeat_interleave(torch.arange(len(count), device="cpu"), count)
    first = torch.cumsum(count, 0) - count
    within = torch.arange(len(tensor), device="cpu") - first[tensor]
    return torch.stack([tensor, within], 1).to(torch.int32)
