"""Packs the maps that kernels walk: each work item's tensor, and its part of that tensor."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fused_optim.backends.interface import Counts, Shape, Sizes
from fused_optim.plan.records import columns

SIZES = columns("batch", "rows", "cols", "numel")
"""Columns of a record that hold a tensor's shape."""

WHOLE = columns("global_numel", "global_rows", "global_cols")
"""Columns of a record that hold the sizes of the unsharded tensor."""

_LOCAL = columns("numel", "rows", "cols")
_COUNTED_BY = columns("batch", "rows", "cols", "cut")


def shapes(records: torch.Tensor) -> list[Shape]:
    """Return the shapes by which a backend counts."""
    sharded = not torch.equal(records[:, _LOCAL], records[:, WHOLE])
    return [
        Shape(batch, rows, cols, sharded, cut)
        for batch, rows, cols, cut in records[:, _COUNTED_BY].tolist()
    ]


def described(records: torch.Tensor, describe: Callable[[Shape], bytes]) -> torch.Tensor:
    """Return int64 ``[tensors, words]`` on the host: what a backend says of each shape."""
    found = shapes(records)
    words = {shape: describe(shape) for shape in set(found)}
    packed = bytearray(b"".join(words[shape] for shape in found))
    return torch.frombuffer(packed, dtype=torch.int64).view(len(found), -1)


def counted(records: torch.Tensor, counts: Counts) -> list[int]:
    """Return the count of each record's tensor, 0 for an empty one."""
    return [counts(shape) if shape.numel else 0 for shape in shapes(records)]


def packed(records: torch.Tensor, counts: Counts, sizes: Sizes | None = None) -> torch.Tensor:
    """Return int32 ``[sum of counts, 2]`` on the host: (tensor, 0 .. count - 1).

    Entries are in the tensors' order or, where their sizes are given, those of equal size are.
    """
    count = torch.tensor(counted(records, counts), dtype=torch.int64, device="cpu")
    tensor = torch.repeat_interleave(torch.arange(len(count), device="cpu"), count)
    first = torch.cumsum(count, 0) - count
    within = torch.arange(len(tensor), device="cpu") - first[tensor]
    entries = torch.stack([tensor, within], 1).to(torch.int32)
    if sizes is None or len(entries) == 0:
        return entries
    found = zip(shapes(records), count.tolist(), strict=True)
    each = torch.cat([sizes(shape) for shape, entries_of_it in found if entries_of_it])
    return entries[torch.sort(each, descending=True, stable=True).indices]
