"""How Adafactor cuts a tensor into tiles, and where each tile's sums lie in the scratch buffer.

A parameter is ``[batch, rows, cols]`` and of one of three kinds:

- LINEAR: a single row. Its tile is a run of LINEAR_TILE elements. Unfactored tensors are of this
  kind, and so are matrices of one row, whose column statistics are full second moments too.
- SMALL: matrices of few elements, as convolution kernels are. Its tile is SMALL_TILE whole
  matrices, one for each lane.
- MATRIX: everything else. Its tile is TILE_ROWS by TILE_COLS of one matrix, or several whole
  matrices that are smaller than that.

A tensor's part of the scratch buffer, in float32 (docs/internals/kernel_contract.md, section 3):

    header [8]                          sum of p^2, sum of g^2, alpha
    g_sums, p_sums, u_sums [tiles]      of F1, F2 and F6
    row_parts [col_tiles, batch, rows]  of F1: each tile's share of a row's sum
    col_parts [row_tiles, batch, cols]  of F1
    mean_parts [batch, row_blocks]      sums of R over ROW_BLOCK rows, for the mean of F4

LINEAR tensors have no parts. Every sum has one writer and is read by later launches only, in an
order that depends on the shape alone.
"""

import triton
import triton.language as tl

from .storage import BATCH as BATCH_FIELD
from .storage import COLS, FIRST_ELEMENT, LAYOUT, ROWS, SCRATCH, strided_offsets

LINEAR, SMALL, MATRIX = map(tl.constexpr, range(3))

LINEAR_TILE = tl.constexpr(16384)
SMALL_TILE = tl.constexpr(256)
SMALL_NUMEL = tl.constexpr(64)
SMALL_SIDE = tl.constexpr(16)
TILE_ROWS = tl.constexpr(512)
TILE_COLS = tl.constexpr(512)
MOST_MATRICES = tl.constexpr(32)
"""The most matrices of a tile that a serial sum may add."""
ROW_BLOCK = tl.constexpr(128)
"""Statistics that one program of the finalising kernel folds."""

HEADER = tl.constexpr(8)
P_SUM, G_SUM, ALPHA = map(tl.constexpr, range(3))


@triton.jit
def cut(batch, rows, cols):
    """Return (kind, matrices per tile, groups of matrices, row tiles, col tiles) of a tensor.

    Host and kernels both run this and the next two functions, the host on Python integers.
    """
    row_tiles = (rows + (TILE_ROWS - 1)) // TILE_ROWS
    col_tiles = (cols + (TILE_COLS - 1)) // TILE_COLS
    kind = rows * 0 + MATRIX
    per_tile = rows * 0 + 1
    if row_tiles * col_tiles == 1:
        per_tile = (TILE_ROWS * TILE_COLS) // (rows * cols)
        if per_tile > MOST_MATRICES:
            per_tile = rows * 0 + MOST_MATRICES
    if (rows * cols <= SMALL_NUMEL) & (rows <= SMALL_SIDE) & (cols <= SMALL_SIDE):
        kind = rows * 0 + SMALL
        per_tile = rows * 0 + SMALL_TILE
    if batch * rows == 1:
        kind = rows * 0 + LINEAR
        per_tile = rows * 0 + 1
        col_tiles = (cols + (LINEAR_TILE - 1)) // LINEAR_TILE
    groups = (batch + (per_tile - 1)) // per_tile
    return kind, per_tile, groups, row_tiles, col_tiles


@triton.jit
def parts(batch, rows, cols, kind, per_tile, groups, row_tiles, col_tiles):
    """Return the offsets of (row_parts, col_parts, mean_parts, end) in a tensor's scratch."""
    row_parts = HEADER + 3 * (groups * row_tiles * col_tiles)
    col_parts = row_parts + col_tiles * batch * rows
    mean_parts = col_parts + row_tiles * batch * cols
    end = mean_parts + batch * ((rows + (ROW_BLOCK - 1)) // ROW_BLOCK)
    if kind == LINEAR:
        end = row_parts
    return row_parts, col_parts, mean_parts, end


@triton.jit
def finalising_blocks(batch, rows, cols, kind, per_tile, groups, row_tiles, col_tiles):
    """Return (blocks of row statistics, blocks of column statistics) that F3 is done in."""
    row_blocks = batch * ((rows + (ROW_BLOCK - 1)) // ROW_BLOCK)
    if kind == SMALL:
        row_blocks = (batch * rows + (ROW_BLOCK - 1)) // ROW_BLOCK
    col_blocks = (batch * cols + (ROW_BLOCK - 1)) // ROW_BLOCK
    if kind == LINEAR:
        row_blocks = rows * 0
        col_blocks = col_tiles
    return row_blocks, col_blocks


def tile_count(batch: int, rows: int, cols: int) -> int:
    """Return how many tiles a tensor has."""
    _, _, groups, row_tiles, col_tiles = _on_host(cut, batch, rows, cols)
    return groups * row_tiles * col_tiles


def block_count(batch: int, rows: int, cols: int) -> int:
    """Return how many programs of the finalising kernel a tensor needs."""
    shape = (batch, rows, cols)
    return sum(_on_host(finalising_blocks, *shape, *_on_host(cut, *shape)))


def adafactor_scratch(batch: int, rows: int, cols: int) -> int:
    """Return how many float32 of scratch a tensor needs."""
    shape = (batch, rows, cols)
    return _on_host(parts, *shape, *_on_host(cut, *shape))[-1]


def _on_host(function, *arguments: int) -> list[int]:
    return [int(getattr(x, "value", x)) for x in function.fn(*arguments)]


@triton.jit
def tile_of(record, tile):
    """Return the place of a program's tile.

    Returns:
        (kind, first matrix, matrices, first row, first col) of the tile, (batch, rows, cols) of the
        tensor.
    """
    batch, rows, cols = (
        tl.load(record + BATCH_FIELD),
        tl.load(record + ROWS),
        tl.load(record + COLS),
    )
    kind, per_tile, _, row_tiles, col_tiles = cut(batch, rows, cols)
    tile = tile.to(tl.int64)
    col = tile % col_tiles
    row = (tile // col_tiles) % row_tiles
    first = tile // (col_tiles * row_tiles) * per_tile
    count = tl.minimum(batch - first, per_tile)
    width = rows * 0 + TILE_COLS
    if kind == LINEAR:
        width = rows * 0 + LINEAR_TILE
    return (kind, first, count, row * TILE_ROWS, col * width), (batch, rows, cols)


@triton.jit
def scratch_of(scratch, record, shape):
    """Return pointers to (header, tile sums, row_parts, col_parts, mean_parts), and tiles."""
    batch, rows, cols = shape
    kind, per_tile, groups, row_tiles, col_tiles = cut(batch, rows, cols)
    row_parts, col_parts, mean_parts, _ = parts(
        batch, rows, cols, kind, per_tile, groups, row_tiles, col_tiles
    )
    base = scratch + tl.load(record + SCRATCH)
    places = (base, base + HEADER, base + row_parts, base + col_parts, base + mean_parts)
    return places, groups * row_tiles * col_tiles


@triton.jit
def offsets_of(record, index, VECTOR: tl.constexpr):
    """Return offsets in param, grad, exp_avg and extra, and elements, of local logical indices."""
    param, grad, exp_avg, extra, element = index, index, index, index, index
    if not VECTOR:
        layout = tl.load(record + LAYOUT)
        if layout != 0:
            param, grad, exp_avg, _, _, extra, element = strided_offsets(layout, index)
    return param, grad, exp_avg, extra, element + tl.load(record + FIRST_ELEMENT)
