"""Finds the blocks of Adafactor's tensors, and loads their gradients."""

import triton
import triton.language as tl

from fused_optim import ops

from .rows import fields_of
from .storage import RECORD_SIZE, ROW, ROW_SIZE, takes_vectors

ARGUMENTS = ("records", "rows", "tiles", "num_tiles", "grad_scale", "found_inf", "clip",
             "clip_stride", "seed_low", "seed_high", "scratch")  # fmt: skip
(GRAD_MUL, RHO, EPS_GRAD, EPS_RMS, CLIP_THRESHOLD, B2, OMB2, B1, OMB1, DECAY_ALPHA, DECAY_BEFORE,
 MEAN_FLOOR, UPDATE_CAP, STEP, ROW_FLAGS) = fields_of(ops.AdafactorRow)  # fmt: skip
SCALE_PARAMETER = tl.constexpr(ops.SCALE_PARAMETER)
HOLD_IF_ZERO = tl.constexpr(ops.HOLD_IF_ZERO)
CLIP_IGNORES_NAN = tl.constexpr(ops.CLIP_IGNORES_NAN)


@triton.jit
def record_of(records, tiles, entry):
    """Return (record, tile, tensor index) of an entry of a map."""
    tensor = tl.load(tiles + 2 * entry.to(tl.int64))
    tile = tl.load(tiles + 2 * entry.to(tl.int64) + 1)
    return records + tensor.to(tl.int64) * RECORD_SIZE, tile.to(tl.int64), tensor


@triton.jit
def row_of(record, rows):
    """Return pointers to a record's row: as float32, and as int32."""
    words = rows + tl.load(record + ROW) * ROW_SIZE
    return words.to(tl.pointer_type(tl.float32), bitcast=True), words


@triton.jit
def rows_take_vectors(record, cols):
    """Return whether the rows of a record's matrices may be read in vectors of eight elements."""
    return takes_vectors(record) & (cols % 8 == 0)


@triton.jit
def linear_index(start, count, LENGTH: tl.constexpr, VECTOR: tl.constexpr):
    """Return (index, mask) of a ``[LENGTH // 8, 8]`` run of elements; with VECTOR all are there."""
    within = tl.arange(0, LENGTH // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    if VECTOR:
        mask = within >= 0
    else:
        mask = within < count
    return start + within, mask


@triton.jit
def matrix_index(shape, matrix, row, col, LENGTH: tl.constexpr, HEIGHT: tl.constexpr,
                 VECTOR: tl.constexpr):  # fmt: skip
    """Return (index, mask) of a ``[HEIGHT, LENGTH // 8, 8]`` block of a matrix."""
    rows, cols = shape[1], shape[2]
    i = row + tl.arange(0, HEIGHT)[:, None, None]
    group = tl.arange(0, LENGTH // 8)[None, :, None]
    lane = tl.arange(0, 8)[None, None, :]
    if VECTOR:
        # In this form the compiler sees that rows begin and end at whole vectors.
        index = ((matrix * rows + i) * (cols // 8) + (col // 8 + group)) * 8 + lane
        mask = (i < rows) & (col // 8 + group < cols // 8)
    else:
        index = (matrix * rows + i) * cols + (col + group * 8 + lane)
        mask = (i < rows) & (col + group * 8 + lane < cols)
    return index, mask
