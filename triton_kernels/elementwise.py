"""The body of every elementwise kernel, of which one program updates one chunk.

An update is two functions: one loads a row's scalars, the other turns a block's values into the
next ones. This module finds the block, loads and stores it, and draws its random bits.
"""

import torch
import triton
import triton.language as tl

from .eight_bit import BLOCK_SIZE, load_first, load_second, store_first, store_second
from .storage import (
    EIGHT_BIT,
    EXP_AVG,
    EXP_AVG_DTYPE,
    EXP_AVG_SQ,
    EXP_AVG_SQ_DTYPE,
    EXP_AVG_SQ_STREAM,
    EXP_AVG_STREAM,
    EXTRA,
    FIRST_ELEMENT,
    GRAD,
    GRAD_DTYPE,
    LAYOUT,
    MAX_EXP_AVG_SQ,
    MAX_EXP_AVG_SQ_STREAM,
    NUMBER,
    NUMEL,
    PARAM,
    RECORD_SIZE,
    ROW,
    ROW_SIZE,
    decode,
    encode,
    load_gradient,
    load_tagged,
    prepare,
    store_moment,
    strided_offsets,
    takes_vectors,
)

GRAD_MUL, CLIP_VALUE = map(tl.constexpr, range(2))
"""Indices of the scalars in an elementwise update's row that prepare its gradients."""

CHUNK_SIZE = 4096
"""Elements of a chunk, which one program updates."""
TAIL_SIZES = {1: 256, 2: 256, 3: 128}
"""Elements that a program holds at a time in a chunk without whole vectors, by its moments. Offsets
need registers there, and each moment has an offset of its own."""
NUM_WARPS = 4
WARP_SIZE = 64 if torch.version.hip else 32

SCALARS = ("num_chunks", "clip_stride", "seed_low", "seed_high")
POINTERS = ("records", "rows", "chunks", "grad_scale", "found_inf", "clip")
ARGUMENTS = (*SCALARS, *POINTERS)
"""Names of the arguments from `arguments_of`. Specialising on one would compile kernels anew."""
DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


def chunk_count(shape) -> int:
    """Return how many chunks a tensor has."""
    return -(-shape.numel // CHUNK_SIZE)


def sizes(dtype: torch.dtype, moments: int, draws: bool, warp_size: int) -> dict[str, int]:
    """Return the elements of a chunk, and those that a program holds in registers at a time.

    Eight elements share a Philox block, so a thread should hold eight. Where nothing is drawn it
    holds four, which for float32 is a vector: with eight, stores go through shared memory. So it
    does for float32 parameters with three moments, whose five operands take too many registers.
    """
    eight = draws and not (moments == 3 and dtype is torch.float32)
    return {
        "CHUNK": CHUNK_SIZE,
        "BLOCK": 1024 if eight else 512,
        # With fewer elements than threads, Triton 3.6 fails to compile some variants for AMD.
        "TAIL": max(TAIL_SIZES[moments], NUM_WARPS * warp_size),
    }


@triton.jit
def _visit(record, offsets, mask, draw, preparation, row, UPDATE: tl.constexpr,
           MOMENTS: tl.constexpr, DTYPE: tl.constexpr, MODE: tl.constexpr,
           VECTOR: tl.constexpr):  # fmt: skip
    """Load, update and store one block. ``offsets`` are those of record fields 0 to 5."""
    at_p, at_g, at_m, at_v, at_h, at_extra = offsets
    grad_mul, clip_value, clip = preparation
    param, extra = tl.load(record + PARAM), tl.load(record + EXTRA)
    exp_avg, m_tag = tl.load(record + EXP_AVG), tl.load(record + EXP_AVG_DTYPE)
    exp_avg_sq, v_tag = tl.load(record + EXP_AVG_SQ), tl.load(record + EXP_AVG_SQ_DTYPE)
    max_exp_avg_sq = tl.load(record + MAX_EXP_AVG_SQ)

    g = load_gradient(tl.load(record + GRAD), tl.load(record + GRAD_DTYPE), at_g, mask, VECTOR)
    m = load_tagged(exp_avg, m_tag, at_m, mask, VECTOR)
    v = m
    if MOMENTS >= 2:
        v = load_tagged(exp_avg_sq, v_tag, at_v, mask, VECTOR)
    h = v
    if MOMENTS == 3:
        h = load_tagged(max_exp_avg_sq, v_tag, at_h, mask, VECTOR)
    p = decode(param, extra, at_p, at_extra, mask, DTYPE, MODE, VECTOR)

    g = prepare(g, grad_mul, clip_value, clip)
    p, m, v, h = UPDATE(p, g, m, v, h, row, MOMENTS)

    encode(p, param, extra, at_p, at_extra, mask, draw, DTYPE, MODE, VECTOR)
    store_moment(m, exp_avg, m_tag, at_m, mask, draw, EXP_AVG_STREAM, VECTOR)
    if MOMENTS >= 2:
        store_moment(v, exp_avg_sq, v_tag, at_v, mask, draw, EXP_AVG_SQ_STREAM, VECTOR)
    if MOMENTS == 3:
        store_moment(h, max_exp_avg_sq, v_tag, at_h, mask, draw, MAX_EXP_AVG_SQ_STREAM, VECTOR)


@triton.jit
def step_chunk(records, rows, chunks, grad_scale, clip, clip_stride, seed_low, seed_high,
               SCALARS_OF: tl.constexpr, UPDATE: tl.constexpr, STEP: tl.constexpr,
               MOMENTS: tl.constexpr, DTYPE: tl.constexpr, MODE: tl.constexpr,
               CHUNK: tl.constexpr, BLOCK: tl.constexpr, TAIL: tl.constexpr,
               PACKED: tl.constexpr = False):  # fmt: skip
    """Update one program's chunk: CHUNK consecutive elements of one tensor, or its last elements.

    ``SCALARS_OF(row)`` loads the scalars for ``UPDATE(p, g, m, v, h, scalars, MOMENTS)``, which
    returns the next p, m, v and h. ``MOMENTS`` is the number of m, v and h that exist. ``STEP``
    is the index of the step count in a row. ``PACKED`` says that some moments may be in 8 bits.
    """
    program = tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunks + 2 * program)
    start = tl.load(chunks + 2 * program + 1).to(tl.int64) * CHUNK
    record = records + tensor.to(tl.int64) * RECORD_SIZE
    words = rows + tl.load(record + ROW) * ROW_SIZE
    row_ptr = words.to(tl.pointer_type(tl.float32), bitcast=True)
    grad_mul = tl.load(row_ptr + GRAD_MUL) * tl.div_rn(1.0, tl.load(grad_scale))
    preparation = (grad_mul, tl.load(row_ptr + CLIP_VALUE), tl.load(clip + tensor * clip_stride))
    row = SCALARS_OF(row_ptr)
    count = tl.minimum(tl.load(record + NUMEL) - start, CHUNK).to(tl.int32)
    first = tl.load(record + FIRST_ELEMENT)
    # Random bits depend on step count, number and seed, and on the element.
    source = (tl.load(words + STEP), tl.load(record + NUMBER), seed_low, seed_high)
    packed = False
    if PACKED:
        packed = tl.load(record + EXP_AVG_DTYPE) == EIGHT_BIT
    if packed:
        if PACKED:
            _packed_chunk(record, start, count, first, source, preparation, row, UPDATE, MOMENTS,
                          DTYPE, MODE)  # fmt: skip
    elif takes_vectors(record) & (count == CHUNK):
        _full_chunk(record, start, first, source, preparation, row, UPDATE, MOMENTS,
                    DTYPE, MODE, CHUNK, BLOCK)  # fmt: skip
    else:
        _partial_chunk(record, start, count, first, source, preparation, row, UPDATE, MOMENTS,
                       DTYPE, MODE, TAIL)  # fmt: skip


@triton.jit
def _full_chunk(record, start, first, source, preparation, row, UPDATE: tl.constexpr,
                MOMENTS: tl.constexpr, DTYPE: tl.constexpr, MODE: tl.constexpr,
                CHUNK: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Update CHUNK aligned elements: whole vectors, and one Philox block for eight elements."""
    group = tl.arange(0, BLOCK // 8)[:, None]
    lane = tl.arange(0, 8)[None, :]
    for offset in range(0, CHUNK, BLOCK):
        at = start + (offset + group * 8 + lane)
        draw = ((first + start + offset) // 8 + group, lane, source)
        _visit(record, (at, at, at, at, at, at), None, draw, preparation, row, UPDATE, MOMENTS,
               DTYPE, MODE, True)  # fmt: skip


@triton.jit
def _packed_chunk(record, start, count, first, source, preparation, row, UPDATE: tl.constexpr,
                  MOMENTS: tl.constexpr, DTYPE: tl.constexpr,
                  MODE: tl.constexpr):  # fmt: skip
    """Update ``count`` elements whose moments are in 8 bits, a block of 256 at a time.

    They lie densely, and those of a block follow each other in the whole tensor too, where a layout
    says from which element on.
    """
    grad_mul, clip_value, clip = preparation
    param, extra = tl.load(record + PARAM), tl.load(record + EXTRA)
    grad, grad_tag = tl.load(record + GRAD), tl.load(record + GRAD_DTYPE)
    exp_avg, exp_avg_sq = tl.load(record + EXP_AVG), tl.load(record + EXP_AVG_SQ)
    max_exp_avg_sq = tl.load(record + MAX_EXP_AVG_SQ)
    group = tl.arange(0, BLOCK_SIZE // 8)[:, None]
    lane = tl.arange(0, 8)[None, :]
    index = group * 8 + lane
    layout = tl.load(record + LAYOUT)
    for offset in range(0, count, BLOCK_SIZE):
        at = start + (offset + index)
        block = (start + offset) // BLOCK_SIZE
        mask = offset + index < count
        element = start + offset
        if layout != 0:
            _, _, _, _, _, _, element = strided_offsets(layout, start + offset)
        draw = ((first + element) // 8 + group, lane, source)
        # Beyond the end, zeros keep the codes of zeros.
        g = tl.where(mask, load_gradient(grad, grad_tag, at, mask, False), 0.0)
        p = tl.where(mask, decode(param, extra, at, at, mask, DTYPE, MODE, False), 0.0)
        v = load_second(exp_avg_sq, block, index)
        m = load_first(exp_avg, block, index, v)
        h = v
        if MOMENTS == 3:
            h = load_second(max_exp_avg_sq, block, index)
        g = prepare(g, grad_mul, clip_value, clip)
        p, m, v, h = UPDATE(p, g, m, v, h, row, MOMENTS)
        encode(p, param, extra, at, at, mask, draw, DTYPE, MODE, False)
        v = store_second(v, exp_avg_sq, block, index, draw, EXP_AVG_SQ_STREAM)
        store_first(m, exp_avg, block, index, v, draw, EXP_AVG_STREAM)
        if MOMENTS == 3:
            store_second(h, max_exp_avg_sq, block, index, draw, MAX_EXP_AVG_SQ_STREAM)


@triton.jit
def _partial_chunk(record, start, count, first, source, preparation, row, UPDATE: tl.constexpr,
                   MOMENTS: tl.constexpr, DTYPE: tl.constexpr, MODE: tl.constexpr,
                   TAIL: tl.constexpr):  # fmt: skip
    """Update ``count`` elements in tensors of any layout."""
    layout = tl.load(record + LAYOUT)
    index = tl.arange(0, TAIL // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    for offset in range(0, count, TAIL):
        at = start + (offset + index)
        at_p, at_g, at_m, at_v, at_h, at_extra, element = at, at, at, at, at, at, at
        if layout != 0:
            at_p, at_g, at_m, at_v, at_h, at_extra, element = strided_offsets(layout, at)
        element += first
        draw = (element >> 3, (element & 7).to(tl.int32), source)
        _visit(record, (at_p, at_g, at_m, at_v, at_h, at_extra), offset + index < count, draw,
               preparation, row, UPDATE, MOMENTS, DTYPE, MODE, False)  # fmt: skip
