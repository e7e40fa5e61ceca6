"""Adafactor: the four ops of a step, in five launches for all tensors of a bucket.

`adafactor_statistics` launches two kernels, for tile sums and for totals; the other ops launch one
each. Gradients are read three times. The second pass runs backwards, so that it begins with the
gradients that the first pass left in cache.
"""

import torch

from .adafactor_apply import apply_kernel
from .adafactor_finalise import finalise_kernel
from .adafactor_statistics import statistics_kernel, totals_kernel
from .adafactor_update import update_sums_kernel
from .elementwise import DTYPES
from .launching import arguments_of, compile_ahead
from .launching import launch as launch_kernel

BLOCK = {"HEIGHT": 16, "LENGTH": 256}
"""Rows and columns that a program holds in registers at a time: 16 elements for each thread."""
WARPS = 8
APPLY_BLOCK = {"HEIGHT": 4, "LENGTH": 256}
"""The block of the kernel that updates parameters: 8 elements for each thread, as it needs more
registers."""
APPLY_WARPS = 4
FOLD = {"PARTS": 16, "LENGTH": 1024}
"""Partial sums that the finalising kernel adds at a time, and elements of a run."""
FOLD_WARPS = 4


_ready: set = set()  # kinds of buckets, all of whose kernels are compiled


def adafactor_statistics(tables, launch) -> torch.Tensor:
    """Run F1 and F2, sums of squares of gradients and parameters, into scratch memory.

    Returns:
        ``[entries]``: the sum of squares of each gradient, not clipped.
    """
    key, arguments = tables.key, _arguments(tables, "tiles")
    kind = (key.device, key.dtype, key.mode)
    if kind not in _ready:  # compiles every kernel first: a step that has begun must not fail
        for kernel in (finalise_kernel, update_sums_kernel, apply_kernel):
            compile_ahead(kernel, *arguments, **_constants(kernel, key))
        _ready.add(kind)
    _launch(statistics_kernel, tables, "tiles")
    count = len(tables.records)
    square_sums = torch.empty(count, dtype=torch.float32, device=key.device)
    launch_kernel(totals_kernel, count, *arguments, square_sums, device=key.device)
    return square_sums


def adafactor_finalise_(tables, launch) -> None:
    """Run F3 to F5: advance the statistics and find each tensor's step size before clipping."""
    _launch(finalise_kernel, tables, "blocks")


def adafactor_update_sums(tables, launch) -> None:
    """Run F6: the sum of squares of each update, before it is scaled."""
    _launch(update_sums_kernel, tables, "tiles")


def adafactor_apply_(tables, launch) -> None:
    """Run F7 to F10: scale the updates and write the parameters."""
    _launch(apply_kernel, tables, "tiles")


def _arguments(tables, name: str) -> tuple:
    return (*arguments_of(tables, name), tables.scratch)


def _constants(kernel, key) -> dict:
    """Return the compile-time constants of a kernel, and its device."""
    parameter = {"DTYPE": DTYPES[key.dtype], "MODE": key.mode}
    constants = {
        statistics_kernel: {**parameter, **BLOCK, "num_warps": WARPS},
        finalise_kernel: {**FOLD, "num_warps": FOLD_WARPS},
        update_sums_kernel: {**BLOCK, "num_warps": WARPS},
        apply_kernel: {**parameter, **APPLY_BLOCK, "num_warps": APPLY_WARPS},
    }[kernel]
    return {**constants, "device": key.device}


def _launch(kernel, tables, name: str) -> None:
    constants = _constants(kernel, tables.key)
    launch_kernel(kernel, len(tables.maps[name]), *_arguments(tables, name), **constants)
