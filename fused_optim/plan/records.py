"""Packs a bucket into the words that docs/internals/kernel_contract.md lays down."""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Iterable

import torch

from fused_optim.backends.interface import Bucket, BucketKey, TensorEntry
from fused_optim.ops import (
    FAMILIES,
    RECORD_FIELDS,
    RECORD_SIZE,
    ROW_SIZE,
    ROWS,
    Family,
    float_fields,
)
from fused_optim.plan import layout as plan_layout
from fused_optim.precision import DTYPE_TAGS
from fused_optim.precision.modes import is_packed

COLUMN = {name: index for index, name in enumerate(RECORD_FIELDS)}
"""The index of each field of a record."""

_ALIGNED = 1
_VECTOR_BYTES = 16
_LARGEST_FLOAT32 = 3.4028235677973366e38  # from here on doubles round to infinity


def columns(*names: str) -> list[int]:
    """Return the indices of a record's fields."""
    return [COLUMN[name] for name in names]


MOMENT_DTYPES = columns("exp_avg_dtype", "exp_avg_sq_dtype")
"""Columns of a record that hold the dtypes of moments."""


def keep(records: torch.Tensor, dtypes: Iterable[torch.dtype]) -> bool:
    """Return whether some record on the host has moments of one of the dtypes."""
    tags = torch.tensor([DTYPE_TAGS[dtype] for dtype in dtypes], device="cpu")
    return bool(torch.isin(records[:, MOMENT_DTYPES], tags).any())


@dataclasses.dataclass(slots=True)
class Packed:
    """A bucket's records on the host.

    Attributes:
        records: ``[tensors, 24]`` int64; the ``layout`` and ``scratch`` fields are still 0.
        blocks: the layout blocks.
        block_of: for each layout block, the record that it belongs to.
        aligned_but_grad: ``[tensors]``, 1 where only the gradient's address may rule out vectors.
    """

    records: torch.Tensor
    blocks: list[list[int]]
    block_of: list[int]
    aligned_but_grad: torch.Tensor


def per_element(entry: TensorEntry, family: Family) -> list[torch.Tensor | None]:
    """Return the tensors of fields 0 to 5 that have as many elements as the parameter."""
    moments = [entry.exp_avg, None, None]
    if family.elementwise:
        moments = [entry.exp_avg, entry.exp_avg_sq, entry.max_exp_avg_sq]
    moments = [None if moment is None or is_packed(moment) else moment for moment in moments]
    return [entry.param, entry.grad, *moments, entry.extra]


def walks_memory(entry: TensorEntry, family: Family, mode: str) -> bool:
    """Return whether a kernel may take an entry's elements as they lie in memory.

    Random bits are those of an element of the whole, so where any are drawn the entry has to be
    consecutive elements of it. Adafactor asks which row and column of the entry an element is of.
    """
    moments = (entry.exp_avg, entry.exp_avg_sq, entry.max_exp_avg_sq)
    draws = mode == "stochastic" or any(
        t is not None and t.dtype in (torch.bfloat16, torch.uint8) for t in moments
    )
    if draws and entry.shard is not None and not entry.shard.in_order:
        return False
    ordered = draws or (not family.elementwise and entry.param.dim() > 1)
    return plan_layout.walks_memory(per_element(entry, family), ordered=ordered)


def fits(entry: TensorEntry, key: BucketKey) -> bool:
    """Return whether an entry can be recorded: it needs no more dimensions than a block has."""
    if entry.param.dim() <= plan_layout.MAX_DIMS:
        return True
    family = FAMILIES[key.op]
    tensors = per_element(entry, family)
    return (
        walks_memory(entry, family, key.mode) or plan_layout.block(tensors, entry.shard) is not None
    )


def keeps_blocks(entry: TensorEntry) -> bool:
    """Return whether the elements of an entry's records, if it has any, lie as those do."""
    held = (entry.exp_avg, entry.exp_avg_sq, entry.max_exp_avg_sq)
    beside = (entry.param, entry.grad, entry.extra)
    dense = all(tensor is None or tensor.is_contiguous() for tensor in beside)
    return dense or not any(map(is_packed, held))


def pack(bucket: Bucket) -> Packed:
    """Return the records of a bucket's entries.

    Raises:
        ValueError: a tensor needs a layout block of more than 8 dimensions.
    """
    rows, blocks, block_of, aligned = [], [], [], []
    family, mode = FAMILIES[bucket.key.op], bucket.key.mode
    for index, entry in enumerate(bucket.entries):
        walks = entry.param.numel() == 0 or walks_memory(entry, family, mode)
        if not walks:
            block = plan_layout.block(per_element(entry, family), entry.shard)
            if block is None:
                raise ValueError(
                    f"a tensor of {entry.param.dim()} dimensions is not in the order of its "
                    "memory, and has too many for a layout block; pass p.contiguous()"
                )
            blocks.append(block)
            block_of.append(index)
        record = _record(entry, family)
        others = [record[0], *record[2:6]]
        aligned.append(int(walks and all(a % _VECTOR_BYTES == 0 for a in others)))
        record[15] = _ALIGNED * (aligned[-1] and record[1] % _VECTOR_BYTES == 0)
        rows.append(record)
    records = torch.tensor(rows, dtype=torch.int64, device="cpu").view(-1, RECORD_SIZE)
    return Packed(records, blocks, block_of, torch.tensor(aligned, dtype=torch.int64, device="cpu"))


def pack_rows(rows: list) -> bytes:
    """Return rows as 16 words each: float32, rounded once from the doubles, and uint32."""
    return b"".join(map(_packed_row, rows))


def matrix_shape(shape: torch.Size) -> tuple[int, int, int]:
    """Return the shape ``(batch, rows, cols)`` in which Adafactor reads a parameter."""
    if len(shape) < 2:
        return 1, 1, shape.numel()
    return shape[:-2].numel(), shape[-2], shape[-1]


def _record(entry: TensorEntry, family: Family) -> list[int]:
    param, numel = entry.param, entry.param.numel()
    moments = (entry.exp_avg, entry.exp_avg_sq, entry.max_exp_avg_sq)
    tensors = (param, entry.grad, *moments, entry.extra, entry.rms)
    shard = entry.shard
    whole = param.shape if shard is None else torch.Size(shard.whole)
    (batch, rows, cols), (_, global_rows, global_cols) = (
        (1, 1, shape.numel()) if family.elementwise else matrix_shape(shape)
        for shape in (param.shape, whole)
    )
    first = 0 if shard is None else shard.first_element
    return [
        *(0 if t is None else t.data_ptr() for t in tensors),
        *(0, numel, first, entry.row, entry.number),  # layout, numel, ..., number
        DTYPE_TAGS[entry.grad.dtype],
        *(0 if t is None else DTYPE_TAGS[t.dtype] for t in moments[:2]),
        *(0, batch, rows, cols, 0),  # flags, shape, scratch
        *(whole.numel(), global_rows, global_cols, 0),  # cut
    ]


@functools.cache
def _row_format(row: type) -> struct.Struct:
    """Return how the fields of a registered row are packed; KeyError for any other."""
    floats = float_fields(ROWS[row].row)
    words = len(dataclasses.fields(row)) - floats
    return struct.Struct(f"={floats}f{words}I{4 * (ROW_SIZE - floats - words)}x")


def _packed_row(row) -> bytes:
    form = _row_format(type(row))
    values, split = dataclasses.astuple(row), float_fields(type(row))
    floats, words = values[:split], [word & 0xFFFFFFFF for word in values[split:]]
    try:
        return form.pack(*floats, *words)
    except OverflowError:  # struct refuses what a conversion would round to infinity
        floats = [float("inf") * x if _LARGEST_FLOAT32 <= abs(x) else x for x in floats]
        return form.pack(*floats, *words)
