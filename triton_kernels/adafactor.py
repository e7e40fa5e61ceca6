"""Adafactor: the four ops of a step, in five launches for all tensors of a bucket.

statistics: tile sums, then totals. finalise: statistics and step sizes. update_sums and apply: one
launch each. Gradients are read three times; the second pass runs backwards, so that where they are
larger than the cache it starts with what the first one left there.
"""

import torch

from .adafactor_apply import apply_kernel
from .adafactor_finalise import finalise_kernel
from .adafactor_geometry import adafactor_scratch, block_count, tile_count
from .adafactor_statistics import statistics_kernel, totals_kernel
from .adafactor_update import update_sums_kernel
from .adamw import DTYPES
from .launching import compile_ahead
from .launching import launch as launch_kernel

BLOCK = {"HEIGHT": 16, "LENGTH": 256}
"""Rows and columns that a program holds in registers at a time: 16 elements for each thread."""
WARPS = 8
APPLY_BLOCK = {"HEIGHT": 4, "LENGTH": 256}
"""The same where parameters are updated, which takes more registers: 8 elements for each thread."""
APPLY_WARPS = 4
FOLD = {"PARTS": 16, "LENGTH": 1024}
"""Partial sums that the finalising kernel adds at a time, and elements of a run."""
FOLD_WARPS = 4


_ready: set = set()  # kinds of bucket whose kernels are all compiled


def adafactor_statistics(bucket, launch) -> torch.Tensor:
    """Run F1 and F2, sums of squares of gradients and parameters, into the bucket's scratch.

    Returns:
        ``[entries]``: the sum of squares of each gradient, not clipped.
    """
    tables, arguments = _arguments(bucket, launch, "tiles", tile_count)
    kind = (bucket.key.device, bucket.key.dtype, bucket.key.mode)
    if kind not in _ready:  # a step that has begun must not fail for want of a kernel
        for kernel in (finalise_kernel, update_sums_kernel, apply_kernel):
            compile_ahead(kernel, *arguments, **_constants(kernel, bucket))
        _ready.add(kind)
    _launch(statistics_kernel, bucket, arguments)
    count = len(tables.records)
    square_sums = torch.empty(count, dtype=torch.float32, device=bucket.key.device)
    launch_kernel(totals_kernel, count, *arguments, square_sums, device=bucket.key.device)
    return square_sums


def adafactor_finalise_(bucket, launch) -> None:
    """Run F3 to F5: advance the statistics and find each tensor's step size before clipping."""
    _launch(finalise_kernel, bucket, _arguments(bucket, launch, "blocks", block_count)[1])


def adafactor_update_sums(bucket, launch) -> None:
    """Run F6: the sum of squares of each update, before it is scaled."""
    _launch(update_sums_kernel, bucket, _arguments(bucket, launch, "tiles", tile_count)[1])


def adafactor_apply_(bucket, launch) -> None:
    """Run F7 to F10: scale the updates and write the parameters."""
    _launch(apply_kernel, bucket, _arguments(bucket, launch, "tiles", tile_count)[1])


def _arguments(bucket, launch, key: str, count) -> tuple:
    """Return the tables and the arguments that all kernels take, for a map of ``count`` each."""
    tables = bucket.tables(launch, adafactor_scratch)
    tiles = tables.tiles(key, count)
    return tables, (
        *(tables.records, tables.rows, tiles, len(tiles)),
        *(tables.grad_scale, tables.found_inf, tables.clip, tables.clip_stride),
        *(tables.seed_low, tables.seed_high, tables.scratch()),
    )


def _constants(kernel, bucket) -> dict:
    """Return the constants that a kernel is compiled with, and where it runs."""
    parameter = {"DTYPE": DTYPES[bucket.key.dtype], "MODE": bucket.key.mode}
    constants = {
        statistics_kernel: {**parameter, **BLOCK, "num_warps": WARPS},
        finalise_kernel: {**FOLD, "num_warps": FOLD_WARPS},
        update_sums_kernel: {**BLOCK, "num_warps": WARPS},
        apply_kernel: {**parameter, **APPLY_BLOCK, "num_warps": APPLY_WARPS},
    }[kernel]
    return {**constants, "device": bucket.key.device}


def _launch(kernel, bucket, arguments: tuple) -> None:
    launch_kernel(kernel, arguments[3], *arguments, **_constants(kernel, bucket))
