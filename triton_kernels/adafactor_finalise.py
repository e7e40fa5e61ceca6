"""Adafactor, stages F3 to F5: advance the statistics and find each tensor's step size."""

import triton
import triton.language as tl

from .adafactor_blocks import (
    ARGUMENTS,
    B2,
    EPS_GRAD,
    EPS_RMS,
    GRAD_MUL,
    OMB2,
    RHO,
    ROW_FLAGS,
    SCALE_PARAMETER,
    linear_index,
    record_of,
    row_of,
)
from .adafactor_geometry import (
    ALPHA,
    G_SUM,
    LINEAR,
    LINEAR_TILE,
    MATRIX,
    P_SUM,
    ROW_BLOCK,
    cut,
    finalising_blocks,
    offsets_of,
    scratch_of,
)
from .storage import (
    BATCH,
    COLS,
    EXP_AVG_SQ,
    GLOBAL_COLS,
    GLOBAL_NUMEL,
    GLOBAL_ROWS,
    GRAD,
    GRAD_DTYPE,
    MAX_EXP_AVG_SQ,
    RMS,
    ROWS,
    load_gradient,
    takes_vectors,
)


@triton.jit
def advance(old, total, count, scalars):
    """Return a statistic after F3; ``scalars`` are k^2, b2, omb2 and eps_grad."""
    k_square, b2, omb2, eps_grad = scalars
    mean = tl.div_rn(k_square * total, count.to(tl.float32))
    return b2 * old + omb2 * (mean + eps_grad)  # [F3]


@triton.jit
def _old(ptr, mask):
    """Load what the program will replace.

    Where there are fewer values than threads, several load each: none may come after the store.
    """
    old = tl.load(ptr) if mask is None else tl.load(ptr, mask=mask, other=0.0)
    tl.debug_barrier()
    return old


@triton.jit
def _fold(part_ptr, stride, count, index, mask, PARTS: tl.constexpr):
    """Return the sums of ``count`` parts that lie ``stride`` apart, at each index."""
    total = tl.zeros([ROW_BLOCK], tl.float32)
    which = tl.arange(0, PARTS)[:, None].to(tl.int64)
    for start in range(0, count, PARTS):
        there = (start + which < count) & mask[None, :]
        ptr = part_ptr + (start + which) * stride + index[None, :]
        total += tl.sum(tl.load(ptr, mask=there, other=0.0), 0)
    return total


@triton.jit
def _statistics_block(state, part_ptr, block, per_matrix, length, pieces, divisor, scalars,
                      batch, PARTS: tl.constexpr):  # fmt: skip
    """Advance ROW_BLOCK statistics of which ``per_matrix`` blocks make a matrix.

    Returns:
        Their sum after the step.
    """
    matrix = block // per_matrix
    at = (block % per_matrix) * ROW_BLOCK + tl.arange(0, ROW_BLOCK)
    mask = at < length
    index = matrix * length + at
    total = _fold(part_ptr, batch * length, pieces, index, mask, PARTS)
    ptr = state.to(tl.pointer_type(tl.float32)) + index
    new = advance(_old(ptr, mask), total, divisor, scalars)
    tl.store(ptr, new, mask=mask)
    return tl.sum(tl.where(mask, new, 0.0))


@triton.jit
def _linear_tile(record, start, count, multiplier, scalars, LENGTH: tl.constexpr,
                 VECTOR: tl.constexpr):  # fmt: skip
    """Advance the full second moment of a run of elements, which may be column statistics too."""
    state = tl.load(record + MAX_EXP_AVG_SQ)
    if state == 0:
        state = tl.load(record + EXP_AVG_SQ)
    grad_mul, clip = multiplier
    b2, omb2, eps_grad = scalars[1], scalars[2], scalars[3]
    for offset in range(0, count, LENGTH):
        index, mask = linear_index(start + offset, count - offset, LENGTH, VECTOR)
        at_g = offsets_of(record, index, VECTOR)[1]
        g = load_gradient(tl.load(record + GRAD), tl.load(record + GRAD_DTYPE), at_g, mask, VECTOR)
        g = (g * grad_mul) * clip
        ptr = state.to(tl.pointer_type(tl.float32)) + index
        if VECTOR:
            ptr = tl.multiple_of(ptr, [1, 16])
        old = tl.load(ptr, mask=mask, other=0.0)
        tl.store(ptr, b2 * old + omb2 * (g * g + eps_grad), mask=mask)  # [F3]


@triton.jit
def _step_size(record, header, row_ptr, words):
    """Run F5: write the root mean square to the state and alpha to the header."""
    rms = tl.sqrt_rn(
        tl.div_rn(tl.load(header + P_SUM), tl.load(record + GLOBAL_NUMEL).to(tl.float32))
    )
    alpha = tl.load(row_ptr + RHO)
    if (tl.load(words + ROW_FLAGS) & SCALE_PARAMETER) != 0:
        # [F5] fmax: where one is NaN, the other
        alpha = alpha * tl.maximum(tl.load(row_ptr + EPS_RMS), rms)
        state = tl.load(record + RMS)
        if state != 0:
            tl.store(state.to(tl.pointer_type(tl.float32)), rms)
    tl.store(header + ALPHA, alpha)


@triton.jit(do_not_specialize=ARGUMENTS)
def finalise_kernel(records, rows, tiles, num_tiles, grad_scale, found_inf, clip, clip_stride,
                    seed_low, seed_high, scratch, PARTS: tl.constexpr,
                    LENGTH: tl.constexpr):  # fmt: skip
    """Run F3 to F5; a program takes ROW_BLOCK statistics, or a run of a full second moment."""
    if tl.load(found_inf) != 0.0:
        return
    record, block, tensor = record_of(records, tiles, tl.program_id(0))
    batch, num_rows, cols = tl.load(record + BATCH), tl.load(record + ROWS), tl.load(record + COLS)
    shape = (batch, num_rows, cols)
    kind, per_tile, groups, row_tiles, col_tiles = cut(batch, num_rows, cols)
    row_blocks, _ = finalising_blocks(
        batch, num_rows, cols, kind, per_tile, groups, row_tiles, col_tiles
    )
    places, _ = scratch_of(scratch, record, shape)
    header, _, row_parts, col_parts, mean_parts = places
    row_ptr, words = row_of(record, rows)
    k = tl.load(clip + tensor * clip_stride)
    scalars = (k * k, tl.load(row_ptr + B2), tl.load(row_ptr + OMB2), tl.load(row_ptr + EPS_GRAD))
    row_state, col_state = tl.load(record + EXP_AVG_SQ), tl.load(record + MAX_EXP_AVG_SQ)
    if block == 0:
        _step_size(record, header, row_ptr, words)
    if kind == LINEAR:
        multiplier = (tl.load(row_ptr + GRAD_MUL) * tl.div_rn(1.0, tl.load(grad_scale)), k)
        start = block * LINEAR_TILE
        count = tl.minimum(cols - start, LINEAR_TILE).to(tl.int32)
        if takes_vectors(record) & (count == LINEAR_TILE):
            _linear_tile(record, start, LINEAR_TILE, multiplier, scalars, LENGTH, True)
        else:
            _linear_tile(record, start, count, multiplier, scalars, LENGTH // 8, False)
        if (block == 0) & (col_state != 0):
            ptr = row_state.to(tl.pointer_type(tl.float32))
            divisor = tl.load(record + GLOBAL_COLS)
            tl.store(ptr, advance(_old(ptr, None), tl.load(header + G_SUM), divisor, scalars))
    elif block < row_blocks:
        length, per_matrix, parted = num_rows, row_blocks // batch, batch
        if kind != MATRIX:  # all rows of all matrices, one after another
            length, per_matrix, parted = batch * num_rows, row_blocks, batch * 0 + 1
        mean = _statistics_block(row_state, row_parts, block, per_matrix, length, col_tiles,
                                 tl.load(record + GLOBAL_COLS), scalars, parted, PARTS)  # fmt: skip
        if kind == MATRIX:
            tl.store(mean_parts + block, mean)
    else:
        length = batch * cols
        _statistics_block(col_state, col_parts, block - row_blocks, length, length, row_tiles,
                          tl.load(record + GLOBAL_ROWS), scalars, batch * 0 + 1, PARTS)  # fmt: skip
