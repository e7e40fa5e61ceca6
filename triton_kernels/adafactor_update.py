"""Adafactor, stage F6: the sum of squares of each update before it is scaled."""

import triton
import triton.language as tl

from .adafactor_blocks import (
    ARGUMENTS,
    GRAD_MUL,
    MEAN_FLOOR,
    UPDATE_CAP,
    linear_index,
    matrix_index,
    record_of,
    row_of,
    rows_take_vectors,
)
from .adafactor_geometry import (
    LINEAR,
    LINEAR_TILE,
    ROW_BLOCK,
    SMALL,
    SMALL_TILE,
    TILE_COLS,
    TILE_ROWS,
    offsets_of,
    scratch_of,
    tile_of,
)
from .storage import (
    EXP_AVG_SQ,
    GLOBAL_ROWS,
    GRAD,
    GRAD_DTYPE,
    MAX_EXP_AVG_SQ,
    load_gradient,
    takes_vectors,
)
from .sums import long_sum


@triton.jit
def inverse_root(x):
    """Return 1/sqrt(x), correctly rounded twice."""
    return tl.div_rn(1.0, tl.sqrt_rn(x))


@triton.jit
def row_factor(row_statistic, mean, mean_floor):
    """Return r of F4."""
    floored = tl.maximum(mean, mean_floor, propagate_nan=tl.PropagateNan.ALL)
    return inverse_root(tl.div_rn(row_statistic, floored))  # [F4]


@triton.jit
def unscaled(g, r, c, update_cap):
    """Return u of F6 from a clipped gradient."""
    return g * tl.minimum(r * c, update_cap, propagate_nan=tl.PropagateNan.ALL)  # [F6]


@triton.jit
def gradient(record, at, mask, multiplier, VECTOR: tl.constexpr):
    """Return a block's gradient, prepared and clipped."""
    grad_mul, clip = multiplier[0], multiplier[1]
    g = load_gradient(tl.load(record + GRAD), tl.load(record + GRAD_DTYPE), at, mask, VECTOR)
    return (g * grad_mul) * clip


@triton.jit
def multiplier_of(row_ptr, grad_scale, clip):
    """Return the scalars of F6: the gradient's preparation, mean_floor and update_cap."""
    grad_mul = tl.load(row_ptr + GRAD_MUL) * tl.div_rn(1.0, tl.load(grad_scale))
    return grad_mul, tl.load(clip), tl.load(row_ptr + MEAN_FLOOR), tl.load(row_ptr + UPDATE_CAP)


@triton.jit
def statistics_of(record):
    """Return pointers to a factored tensor's row and column statistics."""
    row_ptr = tl.load(record + EXP_AVG_SQ).to(tl.pointer_type(tl.float32))
    return row_ptr, tl.load(record + MAX_EXP_AVG_SQ).to(tl.pointer_type(tl.float32))


@triton.jit
def matrix_mean(record, mean_parts, matrix, rows):
    """Return the mean of a matrix's row statistics."""
    blocks = (rows + (ROW_BLOCK - 1)) // ROW_BLOCK
    count = tl.load(record + GLOBAL_ROWS).to(tl.float32)
    return tl.div_rn(long_sum(mean_parts + matrix * blocks, blocks), count)


@triton.jit
def row_factors(record, shape, matrix, row, mean, mean_floor, HEIGHT: tl.constexpr):
    """Return r of F4 for HEIGHT rows, ``[HEIGHT, 1, 1]``."""
    i = row + tl.arange(0, HEIGHT)[:, None, None]
    row_ptr, _ = statistics_of(record)
    statistic = tl.load(row_ptr + matrix * shape[1] + i, mask=i < shape[1], other=1.0)
    return row_factor(statistic, mean, mean_floor)


@triton.jit
def col_factors(record, shape, matrix, col, LENGTH: tl.constexpr):
    """Return c of F4 for LENGTH columns, ``[1, LENGTH // 8, 8]``."""
    j = tl.arange(0, LENGTH // 8)[None, :, None] * 8 + tl.arange(0, 8)[None, None, :]
    _, col_ptr = statistics_of(record)
    ptr = col_ptr + matrix * shape[2] + col + j
    return inverse_root(tl.load(ptr, mask=col + j < shape[2], other=1.0))


@triton.jit
def linear_factors(record, index, mask, multiplier, VECTOR: tl.constexpr):
    """Return (r, c) of F4 for a run of elements: 1 and 1/sqrt(V) where not factored."""
    row_ptr, col_ptr = statistics_of(record)
    factored = tl.load(record + MAX_EXP_AVG_SQ) != 0
    mean_floor = multiplier[2]
    statistic = tl.load(row_ptr + GRAD_MUL)
    r = tl.where(factored, row_factor(statistic, statistic, mean_floor), 1.0)
    address = tl.where(factored, tl.load(record + MAX_EXP_AVG_SQ), tl.load(record + EXP_AVG_SQ))
    ptr = address.to(tl.pointer_type(tl.float32))
    if VECTOR:
        ptr = tl.multiple_of(ptr, 16)
    return r, inverse_root(tl.load(ptr + index, mask=mask, other=1.0))


@triton.jit
def small_mean(record, matrix, mask, rows):
    """Return the mean row statistic of each lane's matrix."""
    row_ptr, _ = statistics_of(record)
    mean = tl.zeros([SMALL_TILE], tl.float32)
    for i in range(0, rows):
        mean += tl.load(row_ptr + matrix * rows + i, mask=mask, other=1.0)
    return tl.div_rn(mean, tl.load(record + GLOBAL_ROWS).to(tl.float32))


@triton.jit
def small_factors(record, shape, matrix, i, j, mask, mean, mean_floor):
    """Return (r, c) of F4 for element (i, j) of each lane's matrix."""
    row_ptr, col_ptr = statistics_of(record)
    statistic = tl.load(row_ptr + matrix * shape[1] + i, mask=mask, other=1.0)
    c = inverse_root(tl.load(col_ptr + matrix * shape[2] + j, mask=mask, other=1.0))
    return row_factor(statistic, mean, mean_floor), c


@triton.jit
def _matrix_block(record, shape, matrix, row, col, r, c, multiplier, LENGTH: tl.constexpr,
                  HEIGHT: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    """Return u^2 of a block of a matrix."""
    index, mask = matrix_index(shape, matrix, row, col, LENGTH, HEIGHT, VECTOR)
    at_g = offsets_of(record, index, VECTOR)[1]
    u = unscaled(gradient(record, at_g, mask, multiplier, VECTOR), r, c, multiplier[3])
    u = tl.where(mask, u, 0.0)
    return u * u


@triton.jit
def _matrix(record, at, shape, matrix, mean, multiplier, HEIGHT: tl.constexpr,
            LENGTH: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    """Return the sum of u^2 of a matrix's tile; with VECTOR it is two blocks wide."""
    row, col = at
    height = tl.minimum(TILE_ROWS, shape[1] - row)
    squares = tl.zeros([HEIGHT, LENGTH // 8, 8], tl.float32)
    if VECTOR:
        c_left = col_factors(record, shape, matrix, col, LENGTH)
        c_right = col_factors(record, shape, matrix, col + LENGTH, LENGTH)
        for start in range(0, height, HEIGHT):
            i = row + start
            r = row_factors(record, shape, matrix, i, mean, multiplier[2], HEIGHT)
            left = _matrix_block(record, shape, matrix, i, col, r, c_left, multiplier,
                                 LENGTH, HEIGHT, True)  # fmt: skip
            right = _matrix_block(record, shape, matrix, i, col + LENGTH, r, c_right, multiplier,
                                  LENGTH, HEIGHT, True)  # fmt: skip
            squares += left + right
    else:
        length = tl.minimum(TILE_COLS, shape[2] - col)
        for start in range(0, height, HEIGHT):
            i = row + start
            r = row_factors(record, shape, matrix, i, mean, multiplier[2], HEIGHT)
            across = tl.zeros([HEIGHT, LENGTH // 8, 8], tl.float32)
            for left in range(0, length, LENGTH):
                c = col_factors(record, shape, matrix, col + left, LENGTH)
                across += _matrix_block(record, shape, matrix, i, col + left, r, c, multiplier,
                                        LENGTH, HEIGHT, False)  # fmt: skip
            squares += across
    return tl.sum(tl.sum(tl.sum(squares, 2), 1))


@triton.jit
def _matrices(record, place, shape, mean_parts, multiplier, HEIGHT: tl.constexpr,
              LENGTH: tl.constexpr):  # fmt: skip
    first, count, row, col = place[1], place[2], place[3], place[4]
    vectors = rows_take_vectors(record, shape[2])
    total = 0.0
    for matrix in range(first, first + count):
        mean = matrix_mean(record, mean_parts, matrix, shape[1])
        if vectors:
            u = _matrix(record, (row, col), shape, matrix, mean, multiplier, HEIGHT, LENGTH, True)
        else:
            u = _matrix(record, (row, col), shape, matrix, mean, multiplier, HEIGHT, LENGTH // 8,
                        False)  # fmt: skip
        total += u
    return total


@triton.jit
def _small(record, place, shape, multiplier):
    first, count = place[1], place[2]
    rows, cols = shape[1], shape[2]
    lane = tl.arange(0, SMALL_TILE)
    matrix, mask = first + lane, lane < count
    mean = small_mean(record, matrix, mask, rows)
    squares = tl.zeros([SMALL_TILE], tl.float32)
    for i in range(0, rows):
        across = tl.zeros([SMALL_TILE], tl.float32)
        for j in range(0, cols):
            r, c = small_factors(record, shape, matrix, i, j, mask, mean, multiplier[2])
            index = (matrix * rows + i) * cols + j
            at_g = offsets_of(record, index, False)[1]
            u = unscaled(gradient(record, at_g, mask, multiplier, False), r, c, multiplier[3])
            u = tl.where(mask, u, 0.0)
            across += u * u
        squares += across
    return tl.sum(squares)


@triton.jit
def _linear(record, start, count, multiplier, LENGTH: tl.constexpr, VECTOR: tl.constexpr):
    squares = tl.zeros([LENGTH // 8, 8], tl.float32)
    for offset in range(0, count, LENGTH):
        index, mask = linear_index(start + offset, count - offset, LENGTH, VECTOR)
        at_g = offsets_of(record, index, VECTOR)[1]
        r, c = linear_factors(record, index, mask, multiplier, VECTOR)
        u = unscaled(gradient(record, at_g, mask, multiplier, VECTOR), r, c, multiplier[3])
        u = tl.where(mask, u, 0.0)
        squares += u * u
    return tl.sum(tl.sum(squares, 1))


@triton.jit(do_not_specialize=ARGUMENTS)
def update_sums_kernel(records, rows, tiles, num_tiles, grad_scale, found_inf, clip, clip_stride,
                       seed_low, seed_high, scratch, HEIGHT: tl.constexpr,
                       LENGTH: tl.constexpr):  # fmt: skip
    """Run F6; one program sums one tile. The last tiles come first, as they are still in cache."""
    if tl.load(found_inf) != 0.0:
        return
    record, tile, tensor = record_of(records, tiles, num_tiles - 1 - tl.program_id(0))
    place, shape = tile_of(record, tile)
    places, num_sums = scratch_of(scratch, record, shape)
    _, sums, _, _, mean_parts = places
    row_ptr, _ = row_of(record, rows)
    multiplier = multiplier_of(row_ptr, grad_scale, clip + tensor * clip_stride)
    kind, start = place[0], place[4]
    if kind == LINEAR:
        count = tl.minimum(shape[2] - start, LINEAR_TILE).to(tl.int32)
        if takes_vectors(record) & (count == LINEAR_TILE):
            u = _linear(record, start, LINEAR_TILE, multiplier, HEIGHT * LENGTH, True)
        else:
            u = _linear(record, start, count, multiplier, HEIGHT * LENGTH // 8, False)
    elif kind == SMALL:
        u = _small(record, place, shape, multiplier)
    else:
        u = _matrices(record, place, shape, mean_parts, multiplier, HEIGHT, LENGTH)
    tl.store(sums + 2 * num_sums + tile, u)
