"""Walks tensors, as batches of matrices, in tiles.

A tile fits in cache, so no temporary is ever as large as a large parameter.
"""

from __future__ import annotations

import torch

from fused_optim.precision.encoding import block_size

Tile = tuple[slice, slice, slice] | None
"""A place in [batch, rows, cols]. None stands for the whole tensor, and costs no slicing."""


def as_matrices(tensor: torch.Tensor | None, ndim: int) -> torch.Tensor | None:
    """Return ``tensor`` as [batch, rows, cols]: a view, or a copy if strides allow none."""
    if tensor is None:
        return None
    if ndim < 2:
        return tensor.reshape(1, 1, -1)
    return tensor.reshape(tensor.shape[:-2].numel(), *tensor.shape[-2:])


def tiles_of(matrices: torch.Tensor) -> list[tuple[int, Tile]]:
    """Return (first element, index) of tiles of [batch, rows, cols], consecutive in memory.

    A tile is several whole matrices, several rows of one matrix, or a part of one long row. A
    tensor that fits one tile has one, and an empty tensor has none.
    """
    batch, rows, cols = matrices.shape
    limit, numel = block_size(matrices.device), batch * rows * cols
    if numel <= limit:
        return [(0, None)] if numel else []
    b_step = max(1, limit // (rows * cols))
    r_step = min(rows, max(1, limit // cols))
    c_step = min(cols, limit)
    return [
        (
            (b * rows + r) * cols + c,
            (slice(b, b + b_step), slice(r, r + r_step), slice(c, c + c_step)),
        )
        for b in range(0, batch, b_step)
        for r in range(0, rows, r_step)
        for c in range(0, cols, c_step)
    ]


def part(tensor: torch.Tensor | None, tile: Tile) -> torch.Tensor | None:
    """Return the tile of a tensor, a view; None stays None."""
    return tensor if tile is None or tensor is None else tensor[tile]
