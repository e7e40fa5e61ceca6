"""State in 8 bits: which parameters have it, and how its records lie."""

from __future__ import annotations

import math

import torch

from fused_optim.distributed import clipping, geometry
from fused_optim.precision import eight_bit

MIN_NUMEL = 4096
"""Elements that a parameter needs: below, what is saved is not worth the rounding."""


def suits(param: torch.Tensor, *, in_tiles: bool = False) -> bool:
    """Return whether a parameter's moments may be kept in 8 bits.

    It has `MIN_NUMEL` elements or more, is contiguous here, and neither float64 nor a flat shard.
    A DTensor's blocks lie within its rows, so that any split of the rows is one of the records; and
    a split of a matrix's columns leaves whole blocks to each process. With ``in_tiles``, rows of
    the last dimension are whole blocks, if there is more than one dimension.
    """
    if in_tiles and param.dim() > 1 and param.shape[-1] % eight_bit.BLOCK:
        return False
    local = geometry.local_of(param)
    if param.numel() < MIN_NUMEL or param.dtype is torch.float64 or not local.is_contiguous():
        return False
    if not geometry.is_dtensor(param):
        return not clipping.is_flat_shard(param)
    return _in_rows(tuple(param.shape)) and _whole_blocks(param)


def _whole_blocks(param: torch.Tensor) -> bool:
    """Return whether every process has whole blocks of a DTensor."""
    ndim, parts = param.dim(), 1
    for size, one in zip(param.device_mesh.shape, param.placements, strict=True):
        if one.is_shard() and one.dim % ndim > 0:
            parts *= size if ndim == 2 else 0
    return parts > 0 and (parts == 1 or param.shape[1] % (eight_bit.BLOCK * parts) == 0)


def _in_rows(shape: tuple[int, ...]) -> bool:
    """Return whether each row of a tensor consists of whole blocks."""
    return len(shape) > 1 and math.prod(shape[1:]) % eight_bit.BLOCK == 0


def stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the uint8 tensor that holds the records of a tensor: a row for a row."""
    if _in_rows(shape):
        return shape[0], math.prod(shape[1:]) // eight_bit.BLOCK * eight_bit.RECORD
    return (-(-math.prod(shape) // eight_bit.BLOCK) * eight_bit.RECORD,)
