"""How the tensors of one record lie in memory (docs/internals/kernel_contract.md, section 7)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fused_optim.distributed.geometry import Shard

MAX_DIMS = 8
BLOCK_SIZE = 65
"""int64 words of a layout block: the number of dimensions, 8 sizes, 7 times 8 strides."""


def walks_memory(tensors: Sequence[torch.Tensor | None], *, ordered: bool) -> bool:
    """Return whether a kernel may walk the tensors element by element as they lie in memory.

    Args:
        tensors: the per-element tensors of a record, the parameter first.
        ordered: whether the i-th element in memory has to be the logical element i.
    """
    present = [t for t in tensors if t is not None]
    if all(t.is_contiguous() for t in present):
        return True
    if ordered:
        return False
    param, *others = present
    strides = _significant_strides(param)
    return _is_dense(param) and all(_significant_strides(t) == strides for t in others)


def block(tensors: Sequence[torch.Tensor | None], shard: Shard | None = None) -> list[int] | None:
    """Return a layout block as `BLOCK_SIZE` integers, or None where it takes too many dimensions.

    Args:
        tensors: the six per-element tensors in the record's order; None where absent.
        shard: where they lie in the whole, if they are a part of one.
    """
    param = tensors[0]
    rows = [[0] * param.dim() if t is None else list(t.stride()) for t in tensors]
    rows.append(_contiguous_strides(param.shape) if shard is None else shard.strides)
    dims: list[tuple[int, list[int]]] = []
    for d, size in enumerate(param.shape):
        if size == 1:
            continue
        strides = [row[d] for row in rows]
        if dims and all(a == size * b for a, b in zip(dims[-1][1], strides, strict=True)):
            dims[-1] = (dims[-1][0] * size, strides)
        else:
            dims.append((size, strides))
    if len(dims) > MAX_DIMS:
        return None
    words = [len(dims)] + _padded([size for size, _ in dims])
    for which in range(len(rows)):
        words += _padded([strides[which] for _, strides in dims])
    return words


def _padded(values: list[int]) -> list[int]:
    return values + [0] * (MAX_DIMS - len(values))


def _contiguous_strides(shape: Sequence[int]) -> list[int]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return strides[::-1]


def _significant_strides(tensor: torch.Tensor) -> list[int]:
    """Return the strides of the dimensions that have more than one index."""
    return [s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def _is_dense(tensor: torch.Tensor) -> bool:
    """Return whether the elements fill a piece of memory without gaps or overlaps."""
    step = 1
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    for stride, size in sorted((stride, size) for stride, size in pairs if size > 1):
        if stride != step:
            return False
        step *= size
    return True
