"""Sums of squared gradients."""

import torch
import triton
import triton.language as tl

from fused_optim.ops import FAMILIES

from .elementwise import CHUNK_SIZE, CLIP_VALUE, GRAD_MUL
from .launching import arguments_of
from .launching import launch as launch_kernel
from .storage import (
    GRAD,
    GRAD_DTYPE,
    LAYOUT,
    NUMEL,
    RECORD_SIZE,
    ROW,
    ROW_SIZE,
    SCRATCH,
    load_gradient,
    prepare,
    strided_offsets,
    takes_vectors,
)
from .sums import long_sum

BLOCK_SIZE = 1024
TAIL_SIZE = 256

_ARGUMENTS = ("records", "rows", "chunks", "num_chunks", "grad_scale", "found_inf", "clip",
              "clip_stride", "seed_low", "seed_high")  # fmt: skip


def grad_square_sums(tables, launch) -> torch.Tensor:
    """Return ``[entries]``: the sum of squares of each gradient, prepared but not yet clipped."""
    arguments = (*arguments_of(tables, "chunks"), tables.scratch)
    sizes = {"CHUNK": CHUNK_SIZE, "BLOCK": BLOCK_SIZE, "TAIL": TAIL_SIZE}
    device, count = tables.key.device, len(tables.records)
    clamps = FAMILIES[tables.key.op].clamps
    launch_kernel(
        square_sums_kernel, arguments[3], *arguments, device=device, CLAMPS=clamps, **sizes
    )
    sums = torch.empty(count, dtype=torch.float32, device=device)
    launch_kernel(fold_kernel, count, *arguments, sums, device=device, CHUNK=CHUNK_SIZE)
    return sums


@triton.jit
def _chunk_of(records, rows, chunks, CHUNK: tl.constexpr):
    """Return (record, row, chunk, first element, elements, whether they are a whole vector run)."""
    program = tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunks + 2 * program)
    chunk = tl.load(chunks + 2 * program + 1).to(tl.int64)
    record = records + tensor.to(tl.int64) * RECORD_SIZE
    row_ptr = (rows + tl.load(record + ROW) * ROW_SIZE).to(
        tl.pointer_type(tl.float32), bitcast=True
    )
    start = chunk * CHUNK
    count = tl.minimum(tl.load(record + NUMEL) - start, CHUNK).to(tl.int32)
    full = takes_vectors(record) & (count == CHUNK)
    return (record, row_ptr, tensor), (chunk, start, count, full)


@triton.jit
def _gradient(record, at, mask, preparation, VECTOR: tl.constexpr):
    """Return a block's prepared gradients."""
    at_g = at
    if not VECTOR:
        layout = tl.load(record + LAYOUT)
        if layout != 0:
            _, at_g, _, _, _, _, _ = strided_offsets(layout, at)
    grad_mul, clip_value, clip = preparation
    g = load_gradient(tl.load(record + GRAD), tl.load(record + GRAD_DTYPE), at_g, mask, VECTOR)
    return prepare(g, grad_mul, clip_value, clip)


@triton.jit
def _squares(record, start, count, preparation, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Return the sum of squares of a chunk's gradients."""
    index = tl.arange(0, BLOCK // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    total = tl.zeros([BLOCK // 8, 8], tl.float32)
    for offset in range(0, count, BLOCK):
        mask = offset + index < count
        if VECTOR:
            g = _gradient(record, start + (offset + index), None, preparation, True)
        else:
            g = _gradient(record, start + (offset + index), mask, preparation, False)
            g = tl.where(mask, g, 0.0)
        total += g * g
    return tl.sum(tl.sum(total, 1))


@triton.jit(do_not_specialize=(*_ARGUMENTS, "scratch"))
def square_sums_kernel(records, rows, chunks, num_chunks, grad_scale, found_inf, clip, clip_stride,
                       seed_low, seed_high, scratch, CLAMPS: tl.constexpr, CHUNK: tl.constexpr,
                       BLOCK: tl.constexpr, TAIL: tl.constexpr):  # fmt: skip
    """Sum squares; one program sums one chunk into its own place of the scratch buffer."""
    where, part = _chunk_of(records, rows, chunks, CHUNK)
    record, row_ptr, _ = where
    chunk, start, count, full = part
    clip_value = float("inf")
    if CLAMPS:
        clip_value = tl.load(row_ptr + CLIP_VALUE)
    grad_mul = tl.load(row_ptr + GRAD_MUL) * tl.div_rn(1.0, tl.load(grad_scale))
    preparation = (grad_mul, clip_value, 1.0)
    if full:
        total = _squares(record, start, CHUNK, preparation, BLOCK, True)
    else:
        total = _squares(record, start, count, preparation, TAIL, False)
    tl.store(scratch + tl.load(record + SCRATCH) + chunk, total)


@triton.jit(do_not_specialize=(*_ARGUMENTS, "scratch", "sums"))
def fold_kernel(records, rows, chunks, num_chunks, grad_scale, found_inf, clip, clip_stride,
                seed_low, seed_high, scratch, sums, CHUNK: tl.constexpr):  # fmt: skip
    """Add up the sums of chunks; one program takes one tensor."""
    tensor = tl.program_id(0)
    record = records + tensor.to(tl.int64) * RECORD_SIZE
    count = (tl.load(record + NUMEL) + (CHUNK - 1)) // CHUNK
    tl.store(sums + tensor, long_sum(scratch + tl.load(record + SCRATCH), count))
