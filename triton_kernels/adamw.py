"""AdamW: every tensor of a bucket in one launch, one program per chunk."""

import torch
import triton
import triton.language as tl

from fused_optim.ops import AdamWRow

from .launching import arguments_of
from .launching import launch as launch_kernel
from .rows import fields_of
from .storage import (
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

(GRAD_MUL, CLIP_VALUE, L2, DECAY_BEFORE, OMB1, B2, OMB2, STEP_SIZE, DENOM_SCALE, EPS, DECAY_AFTER,
 STEP) = fields_of(AdamWRow)  # fmt: skip

CHUNK_SIZE = 4096
"""Elements that one program works on."""
TAIL_SIZES = {False: 256, True: 128}
"""Elements held at a time where a chunk is no run of whole vectors, and offsets take registers; by
whether there is amsgrad, whose maximum has an offset of its own."""
NUM_WARPS = 4
WARP_SIZE = 64 if torch.version.hip else 32

SCALARS = ("num_chunks", "clip_stride", "seed_low", "seed_high")
POINTERS = ("records", "rows", "chunks", "grad_scale", "found_inf", "clip")
DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


def chunk_count(shape) -> int:
    """Return how many chunks a tensor has."""
    return -(-shape.numel // CHUNK_SIZE)


def adamw_(tables, launch) -> None:
    """Run one AdamW step on every tensor of the bucket (kernel contract, section 6)."""
    key = tables.key
    launch_kernel(
        adamw_kernel,
        len(tables.maps["chunks"]),
        *arguments_of(tables, "chunks"),
        device=key.device,
        DTYPE=DTYPES[key.dtype],
        MODE=key.mode,
        AMSGRAD=key.amsgrad,
        **sizes(key.dtype, key.amsgrad, tables.draws, WARP_SIZE),
        num_warps=NUM_WARPS,
    )


def sizes(dtype: torch.dtype, amsgrad: bool, draws: bool, warp_size: int) -> dict[str, int]:
    """Return the elements of a chunk, and those that a program holds in registers at a time.

    Eight elements share a Philox block, so a thread should hold eight. Where nothing is drawn it
    holds four, which for float32 is a vector: with eight, stores go through shared memory. So it
    does for float32 parameters with amsgrad, whose five operands take too many registers.
    """
    eight = draws and not (amsgrad and dtype is torch.float32)
    return {
        "CHUNK": CHUNK_SIZE,
        "BLOCK": 1024 if eight else 512,
        # Of fewer elements than threads, Triton 3.6 fails to compile some variants for AMD.
        "TAIL": max(TAIL_SIZES[amsgrad], NUM_WARPS * warp_size),
    }


@triton.jit
def update(p, g, m, v, h, row, AMSGRAD: tl.constexpr):
    """Return p, m, v, h after W1 to W6, in float32 registers, every operation rounded once."""
    l2, decay_before, omb1, b2, omb2, step_size, denom_scale, eps, decay_after = row
    g = tl.where(l2 != 0.0, g + (l2 * p), g)  # [W1]
    p = p * decay_before  # [W2]
    m = m + (omb1 * (g - m))  # [W3]
    v = (b2 * v) + ((omb2 * g) * g)  # [W4]
    s = v
    if AMSGRAD:
        h = tl.maximum(h, v, propagate_nan=tl.PropagateNan.ALL)  # [W5]
        s = h
    quotient = tl.div_rn(step_size * m, (tl.sqrt_rn(s) * denom_scale) + eps)
    p = (p - (quotient + 0.0)) * decay_after  # [W6]
    return p, m, v, h


@triton.jit
def _visit(record, offsets, mask, draw, preparation, row,
           DTYPE: tl.constexpr, MODE: tl.constexpr, AMSGRAD: tl.constexpr,
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
    v = load_tagged(exp_avg_sq, v_tag, at_v, mask, VECTOR)
    h = v
    if AMSGRAD:
        h = load_tagged(max_exp_avg_sq, v_tag, at_h, mask, VECTOR)
    p = decode(param, extra, at_p, at_extra, mask, DTYPE, MODE, VECTOR)

    g = prepare(g, grad_mul, clip_value, clip)
    p, m, v, h = update(p, g, m, v, h, row, AMSGRAD)

    encode(p, param, extra, at_p, at_extra, mask, draw, DTYPE, MODE, VECTOR)
    store_moment(m, exp_avg, m_tag, at_m, mask, draw, EXP_AVG_STREAM, VECTOR)
    store_moment(v, exp_avg_sq, v_tag, at_v, mask, draw, EXP_AVG_SQ_STREAM, VECTOR)
    if AMSGRAD:
        store_moment(h, max_exp_avg_sq, v_tag, at_h, mask, draw, MAX_EXP_AVG_SQ_STREAM, VECTOR)


@triton.jit(do_not_specialize=[*SCALARS, *POINTERS])
def adamw_kernel(records, rows, chunks, num_chunks, grad_scale, found_inf, clip, clip_stride,
                 seed_low, seed_high, DTYPE: tl.constexpr, MODE: tl.constexpr,
                 AMSGRAD: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
                 TAIL: tl.constexpr):  # fmt: skip
    """One program updates one chunk: CHUNK consecutive elements of one tensor, or its last."""
    if tl.load(found_inf) != 0.0:
        return
    program = tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunks + 2 * program)
    start = tl.load(chunks + 2 * program + 1).to(tl.int64) * CHUNK
    record = records + tensor.to(tl.int64) * RECORD_SIZE
    words = rows + tl.load(record + ROW) * ROW_SIZE
    row_ptr = words.to(tl.pointer_type(tl.float32), bitcast=True)
    grad_mul = tl.load(row_ptr + GRAD_MUL) * tl.div_rn(1.0, tl.load(grad_scale))
    preparation = (grad_mul, tl.load(row_ptr + CLIP_VALUE), tl.load(clip + tensor * clip_stride))
    row = (tl.load(row_ptr + L2), tl.load(row_ptr + DECAY_BEFORE), tl.load(row_ptr + OMB1),
           tl.load(row_ptr + B2), tl.load(row_ptr + OMB2), tl.load(row_ptr + STEP_SIZE),
           tl.load(row_ptr + DENOM_SCALE), tl.load(row_ptr + EPS),
           tl.load(row_ptr + DECAY_AFTER))  # fmt: skip
    count = tl.minimum(tl.load(record + NUMEL) - start, CHUNK).to(tl.int32)
    first = tl.load(record + FIRST_ELEMENT)
    # Step count, number and seed: what random bits depend on beside the element.
    source = (tl.load(words + STEP), tl.load(record + NUMBER), seed_low, seed_high)
    if takes_vectors(record) & (count == CHUNK):
        _full_chunk(record, start, first, source, preparation, row,
                    DTYPE, MODE, AMSGRAD, CHUNK, BLOCK)  # fmt: skip
    else:
        _partial_chunk(record, start, count, first, source, preparation, row,
                       DTYPE, MODE, AMSGRAD, TAIL)  # fmt: skip


@triton.jit
def _full_chunk(record, start, first, source, preparation, row,
                DTYPE: tl.constexpr, MODE: tl.constexpr, AMSGRAD: tl.constexpr,
                CHUNK: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Update CHUNK aligned elements: whole vectors, and one Philox block for eight elements."""
    group = tl.arange(0, BLOCK // 8)[:, None]
    lane = tl.arange(0, 8)[None, :]
    for offset in range(0, CHUNK, BLOCK):
        at = start + (offset + group * 8 + lane)
        draw = ((first + start + offset) // 8 + group, lane, source)
        _visit(record, (at, at, at, at, at, at), None, draw, preparation, row,
               DTYPE, MODE, AMSGRAD, True)  # fmt: skip


@triton.jit
def _partial_chunk(record, start, count, first, source, preparation, row,
                   DTYPE: tl.constexpr, MODE: tl.constexpr, AMSGRAD: tl.constexpr,
                   TAIL: tl.constexpr):  # fmt: skip
    """Update ``count`` elements wherever they lie."""
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
               preparation, row, DTYPE, MODE, AMSGRAD, False)  # fmt: skip
