"""What memory a launch may reach, by the records that the plan made for it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import numpy as np
import torch

from fused_optim.backends.compiled import MODES
from fused_optim.ops import RECORD_FIELDS, RECORD_SIZE
from fused_optim.plan import layout
from fused_optim.precision import DTYPE_TAGS, eight_bit
from ptx.machine import Region

BYTES = {tag: dtype.itemsize for dtype, tag in DTYPE_TAGS.items()}
EIGHT_BIT = DTYPE_TAGS[torch.uint8]
SLOTS = ("param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "extra")  # of a Layout
_written: dict[int, np.ndarray] = {}  # flags of scratch memory, by its address


def array(address: int, count: int, dtype: type) -> np.ndarray:
    """Return a copy of what lies at an address."""
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(address, size), dtype)


def records_at(address: int, tensors: int) -> list[dict[str, int]]:
    rows = array(address, tensors * RECORD_SIZE, np.int64).reshape(tensors, RECORD_SIZE)
    return [dict(zip(RECORD_FIELDS, map(int, row), strict=True)) for row in rows]


def of_tensors(
    records: list[dict[str, int]], dtype: int, mode: int, *, factored: bool
) -> Iterator[Region]:
    """Yield the tensors of records.

    Args:
        dtype: of the parameters, a DtypeTag.
        mode: of the bucket, as the extension numbers them.
        factored: whether the op is Adafactor's, whose statistics may be of rows and columns.
    """
    for record in records:
        if record["numel"] == 0:
            continue
        sizes = {
            "param": BYTES[dtype],
            "grad": BYTES[record["grad_dtype"]],
            "exp_avg": BYTES[record["exp_avg_dtype"]],
            "exp_avg_sq": BYTES[record["exp_avg_sq_dtype"]],
            "max_exp_avg_sq": BYTES[record["exp_avg_sq_dtype"]],
            "extra": 4 if mode == MODES["master"] else 2,
        }
        matrix = factored and record["max_exp_avg_sq"]
        lines = {"exp_avg_sq": "rows", "max_exp_avg_sq": "cols"} if matrix else {}
        eight = record["exp_avg_dtype"] == EIGHT_BIT and not factored
        for slot, name in enumerate(SLOTS):
            if not record[name]:
                continue
            count = _extent(record, slot)
            if name in lines:
                count = record["batch"] * record[lines[name]]
                sizes[name] = 4
            elif eight and name.endswith(("exp_avg", "exp_avg_sq")):
                count = -(-record["numel"] // eight_bit.BLOCK) * eight_bit.RECORD
            yield Region(record[name], count * sizes[name], name != "grad", sizes[name])
        if record["rms"]:
            yield Region(record["rms"], 4, True)
        if record["layout"]:
            yield Region(record["layout"], 8 * layout.BLOCK_SIZE, granule=8)


def _extent(record: dict[str, int], slot: int) -> int:
    """Return how many elements lie from the first to the last of a tensor."""
    if not record["layout"]:
        return record["numel"]
    words = array(record["layout"], layout.BLOCK_SIZE, np.int64)
    dims = int(words[0])
    strides = words[1 + layout.MAX_DIMS * (1 + slot) :][:dims]
    return 1 + int(((words[1 : 1 + dims] - 1) * strides).sum())


def scratch_floats(records: list[dict[str, int]], count: Callable[..., int]) -> int:
    """Return how far the scratch memory of records goes, in float32."""
    shape = ("batch", "rows", "cols", "cut")
    ends = (r["scratch"] + count(*(r[name] for name in shape)) for r in records if r["numel"])
    return max(ends, default=0)


def of_scratch(address: int, floats: int, *, fresh: bool) -> Region:
    """Return scratch memory, of which a step's ops have written what the last of them knows.

    Args:
        address: of its first byte.
        floats: its size.
        fresh: whether the op is a step's first, which relies on nothing that lies there.
    """
    if fresh or len(_written.get(address, ())) != floats:
        _written[address] = np.zeros(floats, np.uint8)
    return Region(address, 4 * floats, True, initialised=_written[address])
