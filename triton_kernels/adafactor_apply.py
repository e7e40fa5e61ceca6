"""Adafactor, stages F7 to F10: scale the updates and write the parameters."""

import triton
import triton.language as tl

from .adafactor_blocks import (
    ARGUMENTS,
    B1,
    CLIP_IGNORES_NAN,
    CLIP_THRESHOLD,
    DECAY_ALPHA,
    DECAY_BEFORE,
    HOLD_IF_ZERO,
    OMB1,
    ROW_FLAGS,
    STEP,
    linear_index,
    matrix_index,
    record_of,
    row_of,
    rows_take_vectors,
)
from .adafactor_geometry import (
    ALPHA,
    LINEAR,
    LINEAR_TILE,
    SMALL,
    SMALL_TILE,
    TILE_COLS,
    TILE_ROWS,
    offsets_of,
    scratch_of,
    tile_of,
)
from .adafactor_update import (
    col_factors,
    gradient,
    linear_factors,
    matrix_mean,
    multiplier_of,
    row_factors,
    small_factors,
    small_mean,
    unscaled,
)
from .storage import (
    EXP_AVG,
    EXP_AVG_DTYPE,
    EXP_AVG_STREAM,
    EXTRA,
    FIRST_ELEMENT,
    GLOBAL_NUMEL,
    NUMBER,
    PARAM,
    decode,
    encode,
    load_tagged,
    store_moment,
    takes_vectors,
)
from .sums import long_sum


@triton.jit
def step_scalars(record, row_ptr, words, alpha, u_sum):
    """Return (scale, decay, b1, omb1) of F7 to F9."""
    flags = tl.load(words + ROW_FLAGS)
    alpha = tl.where(((flags & HOLD_IF_ZERO) != 0) & (u_sum == 0.0), 0.0, alpha)
    mean = tl.div_rn(u_sum, tl.load(record + GLOBAL_NUMEL).to(tl.float32))
    ratio = tl.div_rn(tl.sqrt_rn(mean), tl.load(row_ptr + CLIP_THRESHOLD))
    ratio = tl.where(((flags & CLIP_IGNORES_NAN) != 0) & (ratio != ratio), 1.0, ratio)
    scale = tl.div_rn(alpha, tl.maximum(ratio, 1.0, propagate_nan=tl.PropagateNan.ALL))  # [F7]
    decay = 1.0 - tl.load(row_ptr + DECAY_ALPHA) * alpha
    b1, omb1 = tl.load(row_ptr + B1), tl.load(row_ptr + OMB1)
    return scale, tl.load(row_ptr + DECAY_BEFORE), decay, b1, omb1


@triton.jit
def _apply(record, u, at, mask, draw, scalars, DTYPE: tl.constexpr, MODE: tl.constexpr,
           VECTOR: tl.constexpr):  # fmt: skip
    """Run F8 to F10 on a block, from the ``u`` of F6."""
    scale, decay_before, decay, b1, omb1 = scalars
    at_p, at_m, at_extra = at
    param, extra = tl.load(record + PARAM), tl.load(record + EXTRA)
    exp_avg, m_tag = tl.load(record + EXP_AVG), tl.load(record + EXP_AVG_DTYPE)
    u = u * scale  # [F8]
    if exp_avg != 0:
        m = load_tagged(exp_avg, m_tag, at_m, mask, VECTOR)
        u = b1 * m + omb1 * u
        store_moment(u, exp_avg, m_tag, at_m, mask, draw, EXP_AVG_STREAM, VECTOR)
    p = decode(param, extra, at_p, at_extra, mask, DTYPE, MODE, VECTOR)
    p = (p * decay_before) * decay  # [F9]
    p = p - (u + 0.0)  # [F10]
    encode(p, param, extra, at_p, at_extra, mask, draw, DTYPE, MODE, VECTOR)


@triton.jit
def _matrix_block(record, shape, matrix, row, col, r, c, multiplier, scalars, source,
                  DTYPE: tl.constexpr, MODE: tl.constexpr, LENGTH: tl.constexpr,
                  HEIGHT: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    """Update a block of a matrix."""
    index, mask = matrix_index(shape, matrix, row, col, LENGTH, HEIGHT, VECTOR)
    at_p, at_g, at_m, at_extra, element = offsets_of(record, index, VECTOR)
    if VECTOR:
        i = row + tl.arange(0, HEIGHT)[:, None, None]
        octet = tl.arange(0, LENGTH // 8)[None, :, None]
        first = tl.load(record + FIRST_ELEMENT)
        group = first // 8 + (matrix * shape[1] + i) * (shape[2] // 8) + (col // 8 + octet)
        lane = tl.arange(0, 8)[None, None, :]
    else:
        group, lane = element >> 3, (element & 7).to(tl.int32)
    u = unscaled(gradient(record, at_g, mask, multiplier, VECTOR), r, c, multiplier[3])
    _apply(record, u, (at_p, at_m, at_extra), mask, (group, lane, source), scalars,
           DTYPE, MODE, VECTOR)  # fmt: skip


@triton.jit
def _matrix(record, at, shape, matrix, mean, multiplier, scalars, source, DTYPE: tl.constexpr,
            MODE: tl.constexpr, HEIGHT: tl.constexpr, LENGTH: tl.constexpr,
            VECTOR: tl.constexpr):  # fmt: skip
    """Update a matrix's tile, a strip of LENGTH columns at a time."""
    row, col = at
    height = tl.minimum(TILE_ROWS, shape[1] - row)
    length = tl.minimum(TILE_COLS, shape[2] - col)
    for left in range(0, length, LENGTH):
        c = col_factors(record, shape, matrix, col + left, LENGTH)
        for start in range(0, height, HEIGHT):
            i = row + start
            r = row_factors(record, shape, matrix, i, mean, multiplier[2], HEIGHT)
            _matrix_block(record, shape, matrix, i, col + left, r, c, multiplier, scalars, source,
                          DTYPE, MODE, LENGTH, HEIGHT, VECTOR)  # fmt: skip


@triton.jit
def _matrices(record, place, shape, mean_parts, multiplier, scalars, source, DTYPE: tl.constexpr,
              MODE: tl.constexpr, HEIGHT: tl.constexpr, LENGTH: tl.constexpr):  # fmt: skip
    first, count, row, col = place[1], place[2], place[3], place[4]
    vectors = rows_take_vectors(record, shape[2])
    for matrix in range(first, first + count):
        mean = matrix_mean(record, mean_parts, matrix, shape[1])
        if vectors:
            _matrix(record, (row, col), shape, matrix, mean, multiplier, scalars, source,
                    DTYPE, MODE, HEIGHT, LENGTH, True)  # fmt: skip
        else:
            _matrix(record, (row, col), shape, matrix, mean, multiplier, scalars, source,
                    DTYPE, MODE, HEIGHT, LENGTH // 8, False)  # fmt: skip


@triton.jit
def _small(record, place, shape, multiplier, scalars, source, DTYPE: tl.constexpr,
           MODE: tl.constexpr):  # fmt: skip
    first, count = place[1], place[2]
    rows, cols = shape[1], shape[2]
    lane = tl.arange(0, SMALL_TILE)
    matrix, mask = first + lane, lane < count
    mean = small_mean(record, matrix, mask, rows)
    for i in range(0, rows):
        for j in range(0, cols):
            r, c = small_factors(record, shape, matrix, i, j, mask, mean, multiplier[2])
            index = (matrix * rows + i) * cols + j
            at_p, at_g, at_m, at_extra, element = offsets_of(record, index, False)
            u = unscaled(gradient(record, at_g, mask, multiplier, False), r, c, multiplier[3])
            draw = (element >> 3, (element & 7).to(tl.int32), source)
            _apply(record, u, (at_p, at_m, at_extra), mask, draw, scalars, DTYPE, MODE, False)


@triton.jit
def _linear(record, start, count, multiplier, scalars, source, DTYPE: tl.constexpr,
            MODE: tl.constexpr, LENGTH: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    for offset in range(0, count, LENGTH):
        index, mask = linear_index(start + offset, count - offset, LENGTH, VECTOR)
        at_p, at_g, at_m, at_extra, element = offsets_of(record, index, VECTOR)
        r, c = linear_factors(record, index, mask, multiplier, VECTOR)
        u = unscaled(gradient(record, at_g, mask, multiplier, VECTOR), r, c, multiplier[3])
        if VECTOR:
            octet = tl.arange(0, LENGTH // 8)[:, None]
            group = (tl.load(record + FIRST_ELEMENT) + start + offset) // 8 + octet
            lane = tl.arange(0, 8)[None, :]
        else:
            group, lane = element >> 3, (element & 7).to(tl.int32)
        _apply(record, u, (at_p, at_m, at_extra), mask, (group, lane, source), scalars,
               DTYPE, MODE, VECTOR)  # fmt: skip


@triton.jit(do_not_specialize=ARGUMENTS)
def apply_kernel(records, rows, tiles, num_tiles, grad_scale, found_inf, clip, clip_stride,
                 seed_low, seed_high, scratch, DTYPE: tl.constexpr, MODE: tl.constexpr,
                 HEIGHT: tl.constexpr, LENGTH: tl.constexpr):  # fmt: skip
    """Run F7 to F10; one program updates one tile."""
    if tl.load(found_inf) != 0.0:
        return
    record, tile, tensor = record_of(records, tiles, tl.program_id(0))
    place, shape = tile_of(record, tile)
    places, num_sums = scratch_of(scratch, record, shape)
    header, sums, _, _, mean_parts = places
    row_ptr, words = row_of(record, rows)
    multiplier = multiplier_of(row_ptr, grad_scale, clip + tensor * clip_stride)
    u_sum = long_sum(sums + 2 * num_sums, num_sums)
    scalars = step_scalars(record, row_ptr, words, tl.load(header + ALPHA), u_sum)
    source = (tl.load(words + STEP), tl.load(record + NUMBER), seed_low, seed_high)
    kind, start = place[0], place[4]
    if kind == LINEAR:
        count = tl.minimum(shape[2] - start, LINEAR_TILE).to(tl.int32)
        if takes_vectors(record) & (count == LINEAR_TILE):
            _linear(record, start, LINEAR_TILE, multiplier, scalars, source, DTYPE, MODE,
                    HEIGHT * LENGTH, True)  # fmt: skip
        else:
            _linear(record, start, count, multiplier, scalars, source, DTYPE, MODE,
                    HEIGHT * LENGTH // 8, False)  # fmt: skip
    elif kind == SMALL:
        _small(record, place, shape, multiplier, scalars, source, DTYPE, MODE)
    else:
        _matrices(record, place, shape, mean_parts, multiplier, scalars, source, DTYPE, MODE,
                  HEIGHT, LENGTH)  # fmt: skip
