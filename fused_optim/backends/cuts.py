"""Chooses how finely Adafactor's tensors are cut into tiles, for all tensors of a bucket at once.

A GPU's blocks take the tiles of a launch in turn. If tiles are few and large, one block has more to
do than the others, and the device waits for it. If they are small, there are more sums to keep and
more tiles to begin.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import ModuleType

import torch

from fused_optim.backends.interface import BucketKey, Shape

BALANCED = 1.05
"""Tiles are small enough if the busiest processor has at most this many times the mean to do."""

FREE_SCRATCH = 16 << 20
"""Bytes of scratch memory that a bucket may take however small its parameters are."""


def busiest(extension: ModuleType, shapes: Sequence[Shape], blocks: int, cut: int) -> float:
    """Return the elements of the busiest processor, divided by the mean of all processors.

    A processor runs two blocks that walk tiles, then one that walks the tensors that are visited.
    Of the blocks that run at once, the one with most to do counts.

    Args:
        extension: the compiled module.
        shapes: of the bucket's tensors, none of them empty.
        blocks: blocks that walk tiles and that the device runs at once.
        cut: how often the largest tiles are halved.
    """
    tiles, visits = [], []
    for shape in shapes:
        if is_visited(extension, shape._replace(cut=cut)):
            visits.append(torch.tensor([shape.numel], device="cpu"))
        else:
            tiles.append(tile_sizes(extension, shape._replace(cut=cut)))
    total, processors = sum(shape.numel for shape in shapes), max(blocks // 2, 1)
    return (_most(tiles, blocks) * blocks + _most(visits, processors) * processors) / total


def is_visited(extension: ModuleType, shape: Shape) -> bool:
    """Return whether one block makes a tensor's whole step, in the finalising op."""
    sizes = shape.batch, shape.rows, shape.cols, shape.cut
    return not shape.sharded and extension.adafactor_visited(*sizes)


def chosen(extension: ModuleType, shapes: Sequence[Shape], key: BucketKey) -> int:
    """Return how often the largest tiles are halved for a bucket.

    It is as seldom as keeps processors busy alike, or else what comes closest to that in the
    scratch memory that a bucket may take. Small tensors, if there are no others, are not cut up at
    all: one launch makes their whole step, and four more would take longer than they save.
    """
    shapes = [shape for shape in shapes if shape.numel]
    if all(is_visited(extension, shape) for shape in shapes):
        return 0
    blocks = extension.adafactor_blocks(key.device.index or 0)
    most = max(FREE_SCRATCH, sum(s.numel for s in shapes) * key.dtype.itemsize / 100)
    best, found = 0, busiest(extension, shapes, blocks, 0)
    for cut in range(1, extension.ADAFACTOR_MOST_CUT + 1):
        floats = sum(extension.adafactor_scratch(*shape[:3], cut) for shape in shapes)
        if found <= BALANCED or 4 * floats > most:
            break
        with_cut = busiest(extension, shapes, blocks, cut)
        if with_cut < found:
            best, found = cut, with_cut
    return best


@functools.lru_cache(maxsize=256)
def tile_sizes(extension: ModuleType, shape: Shape) -> torch.Tensor:
    """Return the elements of each of a tensor's tiles."""
    sizes = extension.adafactor_tile_sizes(shape.batch, shape.rows, shape.cols, shape.cut)
    return torch.tensor(sizes, dtype=torch.int64, device="cpu")


def _most(sizes: Sequence[torch.Tensor], blocks: int) -> int:
    """Return the elements of the block that has most.

    Of a map, which begins with the largest items, block b takes b, b + blocks, b + 2 blocks, ...
    """
    if not sizes:
        return 0
    in_turn = torch.sort(torch.cat(list(sizes)), descending=True).values
    whole_turns = torch.nn.functional.pad(in_turn, (0, -len(in_turn) % blocks))
    return int(whole_turns.view(-1, blocks).sum(0).max())
