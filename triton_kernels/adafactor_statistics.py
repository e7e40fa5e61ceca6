"""Adafactor, stages F1 and F2: one pass over gradients and parameters, then the totals."""

import triton
import triton.language as tl

from .adafactor_blocks import (
    ARGUMENTS,
    GRAD_MUL,
    ROW_FLAGS,
    SCALE_PARAMETER,
    linear_index,
    matrix_index,
    record_of,
    row_of,
    rows_take_vectors,
)
from .adafactor_geometry import (
    G_SUM,
    LINEAR,
    LINEAR_TILE,
    P_SUM,
    SMALL,
    SMALL_TILE,
    TILE_COLS,
    TILE_ROWS,
    offsets_of,
    scratch_of,
    tile_of,
)
from .storage import (
    EXTRA,
    GRAD,
    GRAD_DTYPE,
    NUMEL,
    PARAM,
    RECORD_SIZE,
    decode,
    load_gradient,
    takes_vectors,
)
from .sums import long_sum


@triton.jit
def gradient_squares(record, index, mask, grad_mul, VECTOR: tl.constexpr):
    """Return g^2 of a block, 0 where it is masked."""
    at = offsets_of(record, index, VECTOR)[1]
    g = load_gradient(tl.load(record + GRAD), tl.load(record + GRAD_DTYPE), at, mask, VECTOR)
    g = tl.where(mask, g * grad_mul, 0.0)
    return g * g


@triton.jit
def parameter_squares(record, index, mask, DTYPE: tl.constexpr, MODE: tl.constexpr,
                      VECTOR: tl.constexpr):  # fmt: skip
    """Return p^2 of a block, 0 where it is masked."""
    at, _, _, at_extra, _ = offsets_of(record, index, VECTOR)
    param, extra = tl.load(record + PARAM), tl.load(record + EXTRA)
    p = tl.where(mask, decode(param, extra, at, at_extra, mask, DTYPE, MODE, VECTOR), 0.0)
    return p * p


@triton.jit
def total(x):
    """Return the sum of a three-dimensional block as one value."""
    return tl.sum(tl.sum(tl.sum(x, 2), 1))


@triton.jit
def _matrix_vectors(record, at, shape, matrix, parts, grad_mul, HEIGHT: tl.constexpr,
                    LENGTH: tl.constexpr):  # fmt: skip
    """Sum g^2 of a tile, two blocks wide; columns are summed in registers, rows at once."""
    row, col = at
    row_ptr, col_ptr = parts
    rows, cols = shape[1], shape[2]
    left = tl.zeros([HEIGHT, LENGTH // 8, 8], tl.float32)
    right = left
    for start in range(0, tl.minimum(TILE_ROWS, rows - row), HEIGHT):
        index, mask = matrix_index(shape, matrix, row + start, col, LENGTH, HEIGHT, True)
        g_left = gradient_squares(record, index, mask, grad_mul, True)
        index, mask = matrix_index(shape, matrix, row + start, col + LENGTH, LENGTH, HEIGHT, True)
        g_right = gradient_squares(record, index, mask, grad_mul, True)
        left += g_left
        right += g_right
        i = start + tl.arange(0, HEIGHT)
        row_sum = tl.sum(tl.sum(g_left + g_right, 2), 1)  # [F1]
        tl.store(row_ptr + i, row_sum, mask=row + i < rows)
    j = tl.arange(0, LENGTH // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    tl.store(col_ptr + j, tl.sum(left, 0), mask=col + j < cols)  # [F1]
    tl.store(col_ptr + LENGTH + j, tl.sum(right, 0), mask=col + LENGTH + j < cols)
    return total(left + right)


@triton.jit
def _matrix_elements(record, at, shape, matrix, parts, grad_mul, HEIGHT: tl.constexpr,
                     LENGTH: tl.constexpr):  # fmt: skip
    """Sum g^2 of a tile whatever its layout, in small blocks: rows first, then columns."""
    row, col = at
    row_ptr, col_ptr = parts
    rows, cols = shape[1], shape[2]
    height, length = tl.minimum(TILE_ROWS, rows - row), tl.minimum(TILE_COLS, cols - col)
    every = tl.zeros([HEIGHT, LENGTH // 8, 8], tl.float32)
    for top in range(0, height, HEIGHT):
        across = tl.zeros([HEIGHT, LENGTH // 8, 8], tl.float32)
        for start in range(0, length, LENGTH):
            index, mask = matrix_index(shape, matrix, row + top, col + start, LENGTH, HEIGHT, False)
            across += gradient_squares(record, index, mask, grad_mul, False)
        i = top + tl.arange(0, HEIGHT)
        tl.store(row_ptr + i, tl.sum(tl.sum(across, 2), 1), mask=row + i < rows)  # [F1]
        every += across
    for start in range(0, length, LENGTH):
        down = tl.zeros([HEIGHT, LENGTH // 8, 8], tl.float32)
        for top in range(0, height, HEIGHT):
            index, mask = matrix_index(shape, matrix, row + top, col + start, LENGTH, HEIGHT, False)
            down += gradient_squares(record, index, mask, grad_mul, False)
        j = start + tl.arange(0, LENGTH // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
        tl.store(col_ptr + j, tl.sum(down, 0), mask=col + j < cols)  # [F1]
    return total(every)


@triton.jit
def _matrix_parameters(record, at, shape, matrix, DTYPE: tl.constexpr, MODE: tl.constexpr,
                       HEIGHT: tl.constexpr, LENGTH: tl.constexpr,
                       VECTOR: tl.constexpr):  # fmt: skip
    """Sum p^2 of a tile, in a pass of its own, as one with g would need too many registers."""
    row, col = at
    every = tl.zeros([HEIGHT, LENGTH // 8, 8], tl.float32)
    for top in range(0, tl.minimum(TILE_ROWS, shape[1] - row), HEIGHT):
        across = tl.zeros([HEIGHT, LENGTH // 8, 8], tl.float32)
        for start in range(0, tl.minimum(TILE_COLS, shape[2] - col), LENGTH):
            at_row, at_col = row + top, col + start
            index, mask = matrix_index(shape, matrix, at_row, at_col, LENGTH, HEIGHT, VECTOR)
            across += parameter_squares(record, index, mask, DTYPE, MODE, VECTOR)
        every += across
    return total(every)


@triton.jit
def _matrices(record, place, shape, row_parts, col_parts, grad_mul, scaled,
              DTYPE: tl.constexpr, MODE: tl.constexpr, HEIGHT: tl.constexpr,
              LENGTH: tl.constexpr):  # fmt: skip
    """Sum the tile of a MATRIX tensor: a part of one matrix, or several whole ones."""
    first, count, row, col = place[1], place[2], place[3], place[4]
    batch, rows, cols = shape
    vectors = rows_take_vectors(record, shape[2])
    g_sum, p_sum = 0.0, 0.0
    for matrix in range(first, first + count):
        parts = (
            row_parts + (col // TILE_COLS * batch + matrix) * rows + row,
            col_parts + (row // TILE_ROWS * batch + matrix) * cols + col,
        )
        if vectors:
            g_sum += _matrix_vectors(record, (row, col), shape, matrix, parts, grad_mul,
                                     HEIGHT, LENGTH)  # fmt: skip
        else:
            g_sum += _matrix_elements(record, (row, col), shape, matrix, parts, grad_mul,
                                      HEIGHT, LENGTH // 8)  # fmt: skip
        if scaled & vectors:
            p_sum += _matrix_parameters(record, (row, col), shape, matrix, DTYPE, MODE,
                                        HEIGHT, LENGTH, True)  # fmt: skip
        elif scaled:
            p_sum += _matrix_parameters(record, (row, col), shape, matrix, DTYPE, MODE,
                                        HEIGHT, LENGTH // 8, False)  # fmt: skip
    return g_sum, p_sum


@triton.jit
def _small(record, place, shape, row_parts, col_parts, grad_mul, scaled,
           DTYPE: tl.constexpr, MODE: tl.constexpr):  # fmt: skip
    """Sum the tile of a SMALL tensor, one matrix for each lane."""
    first, count = place[1], place[2]
    rows, cols = shape[1], shape[2]
    lane = tl.arange(0, SMALL_TILE)
    matrix, mask = first + lane, lane < count
    g_all = tl.zeros([SMALL_TILE], tl.float32)
    p_all = g_all
    for i in range(0, rows):
        across = tl.zeros([SMALL_TILE], tl.float32)
        p_across = across
        for j in range(0, cols):
            index = (matrix * rows + i) * cols + j
            across += gradient_squares(record, index, mask, grad_mul, False)
            if scaled:
                p_across += parameter_squares(record, index, mask, DTYPE, MODE, False)
        tl.store(row_parts + matrix * rows + i, across, mask=mask)  # [F1]
        g_all += across
        p_all += p_across
    for j in range(0, cols):
        down = tl.zeros([SMALL_TILE], tl.float32)
        for i in range(0, rows):
            index = (matrix * rows + i) * cols + j
            down += gradient_squares(record, index, mask, grad_mul, False)
        tl.store(col_parts + matrix * cols + j, down, mask=mask)  # [F1]
    return tl.sum(g_all), tl.sum(p_all)


@triton.jit
def _linear_blocks(record, start, count, grad_mul, scaled, DTYPE: tl.constexpr, MODE: tl.constexpr,
                   LENGTH: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    g_all = tl.zeros([LENGTH // 8, 8], tl.float32)
    p_all = g_all
    for offset in range(0, count, LENGTH):
        index, mask = linear_index(start + offset, count - offset, LENGTH, VECTOR)
        g_all += gradient_squares(record, index, mask, grad_mul, VECTOR)
        if scaled:
            p_all += parameter_squares(record, index, mask, DTYPE, MODE, VECTOR)
    return tl.sum(tl.sum(g_all, 1)), tl.sum(tl.sum(p_all, 1))


@triton.jit(do_not_specialize=ARGUMENTS)
def statistics_kernel(records, rows, tiles, num_tiles, grad_scale, found_inf, clip, clip_stride,
                      seed_low, seed_high, scratch, DTYPE: tl.constexpr, MODE: tl.constexpr,
                      HEIGHT: tl.constexpr, LENGTH: tl.constexpr):  # fmt: skip
    """Run F1 and F2; one program sums one tile, into its own places of the scratch buffer."""
    record, tile, _ = record_of(records, tiles, tl.program_id(0))
    place, shape = tile_of(record, tile)
    places, num_sums = scratch_of(scratch, record, shape)
    _, sums, row_parts, col_parts, _ = places
    row_ptr, words = row_of(record, rows)
    grad_mul = tl.load(row_ptr + GRAD_MUL) * tl.div_rn(1.0, tl.load(grad_scale))
    scaled = (tl.load(words + ROW_FLAGS) & SCALE_PARAMETER) != 0
    kind, start = place[0], place[4]
    if kind == LINEAR:
        count = tl.minimum(shape[2] - start, LINEAR_TILE).to(tl.int32)
        if takes_vectors(record) & (count == LINEAR_TILE):
            g, p = _linear_blocks(record, start, LINEAR_TILE, grad_mul, scaled, DTYPE, MODE,
                                  HEIGHT * LENGTH, True)  # fmt: skip
        else:
            g, p = _linear_blocks(record, start, count, grad_mul, scaled, DTYPE, MODE,
                                  HEIGHT * LENGTH // 8, False)  # fmt: skip
    elif kind == SMALL:
        g, p = _small(record, place, shape, row_parts, col_parts, grad_mul, scaled, DTYPE, MODE)
    else:
        g, p = _matrices(record, place, shape, row_parts, col_parts, grad_mul, scaled, DTYPE, MODE,
                         HEIGHT, LENGTH)  # fmt: skip
    tl.store(sums + tile, g)
    tl.store(sums + num_sums + tile, p)  # [F2]


@triton.jit(do_not_specialize=(*ARGUMENTS, "square_sums"))
def totals_kernel(records, rows, tiles, num_tiles, grad_scale, found_inf, clip, clip_stride,
                  seed_low, seed_high, scratch, square_sums):  # fmt: skip
    """Add up tile sums; one program takes one tensor."""
    tensor = tl.program_id(0)
    record = records + tensor.to(tl.int64) * RECORD_SIZE
    g = 0.0
    if tl.load(record + NUMEL) > 0:
        _, shape = tile_of(record, tensor * 0)
        places, num_sums = scratch_of(scratch, record, shape)
        header, sums, _, _, _ = places
        g = long_sum(sums, num_sums)
        tl.store(header + G_SUM, g)
        tl.store(header + P_SUM, long_sum(sums + num_sums, num_sums))
    tl.store(square_sums + tensor, g)
