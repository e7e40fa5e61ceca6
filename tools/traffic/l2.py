"""A cache that keeps what was used last, and the order in which a grid of blocks uses memory.

Memory is cut into granules: some steps of one tile, all of which a block touches before it goes on.
Blocks are taken to advance in lockstep, and the cache to be fully associative with exact LRU
replacement, lines of a granule moving together. Real caches do neither; what is measured decides.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Walk:
    """How a pass goes through a bucket: blocks take items, and walk each in steps."""

    tiles: str = "forwards"
    steps: str = "forwards"

    def __post_init__(self) -> None:
        for value in (self.tiles, self.steps):
            if value not in ("forwards", "backwards"):
                raise ValueError(f"a walk goes forwards or backwards, and this one {value!r}")


@dataclass(frozen=True)
class Grid:
    """Blocks that run at once, and how they walk."""

    blocks: int
    walk: Walk = Walk()


def order(sizes: np.ndarray, grid: Grid) -> np.ndarray:
    """Return all granules, numbered through all items, in the order in which a grid touches them.

    Block b takes items b, b + blocks, b + 2 blocks, ... of the walk's order; ``sizes``, [items],
    are the granules of each item.
    """
    blocks, walk = grid.blocks, grid.walk
    items = np.arange(len(sizes))
    if walk.tiles == "backwards":
        items = items[::-1]
    offsets = np.cumsum(sizes) - sizes
    rounds = -(-len(items) // blocks)
    padded = np.zeros(rounds * blocks, dtype=np.int64)
    padded[: len(items)] = sizes[items]
    taken = padded.reshape(rounds, blocks)
    starts = (np.cumsum(taken, 0) - taken).ravel()[: len(items)]
    counts = sizes[items]
    position = np.repeat(np.arange(len(items)), counts)
    step = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
    time = starts[position] + step
    if walk.steps == "backwards":
        step = counts[position] - 1 - step
    granules = offsets[items][position] + step
    return granules[np.lexsort((position % blocks, time))]


class Lru:
    """A cache of a number of bytes; entries are of any size."""

    def __init__(self, capacity: float) -> None:
        self.capacity = capacity
        self._kept: OrderedDict[int, float] = OrderedDict()
        self._bytes = 0.0

    def touch(self, granule: int, size: float) -> bool:
        found = granule in self._kept
        if found:
            self._kept.move_to_end(granule)
        else:
            self._kept[granule] = size
            self._bytes += size
            while self._bytes > self.capacity and self._kept:
                self._bytes -= self._kept.popitem(last=False)[1]
        return found

    def replay(self, granules: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Use granules one after another, none of them twice; returns which were not there.

        Once as much was used as the cache holds, whatever comes next was last used longer ago than
        all of that, and misses. So only the two ends of a long pass are gone through.
        """
        missed = np.ones(len(granules), dtype=bool)
        used = np.cumsum(sizes)
        total = used[-1] if len(used) else 0.0
        head = int(np.searchsorted(used, self.capacity, side="right")) + 1
        tail = int(np.searchsorted(used, total - self.capacity, side="left"))
        if head >= tail:
            head = tail = len(granules)
        pairs = list(zip(granules.tolist(), sizes.tolist(), strict=True))
        missed[:head] = [not self.touch(*pair) for pair in pairs[:head]]
        if tail < len(granules):
            self._kept.clear()
            self._bytes = 0.0
            for pair in pairs[tail:]:
                self.touch(*pair)
        return missed
