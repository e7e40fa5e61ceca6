"""Bytes that each of Adafactor's passes loads from memory and stores to it, past an L2 cache.

Memory is cut into granules. A granule is some steps of one tile, all of which a block touches
before it goes on. The model assumes that blocks advance in lockstep, that the cache is fully
associative with exact LRU replacement, and that the lines of a granule move together. Real devices
differ; measurements decide.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from bench import traffic
from bench.traffic import Kind
from fused_optim.backends.cuts import BALANCED

GRANULE = 8192
"""Elements that the cache keeps or drops together: four steps of a block, more in large buckets."""

MOST_GRANULES = 1 << 15
ELEMENTWISE = ("grad", "param", "extra", "exp_avg", "exp_avg_sq")

Walk = tuple[int, int]
"""The directions of a pass through its tiles and through the steps of each: 1 forwards, -1 back."""


def counted_walks() -> dict[str, Walk]:
    """Return how the kernels walk in each pass."""
    ways = {"forwards": 1, "backwards": -1}
    walks = traffic.counts()["tiles"]["walks"]
    return {name: (ways[walk["tiles"]], ways[walk["steps"]]) for name, walk in walks.items()}


def kind_of_tensor(kind: Kind, shape: Sequence[int]) -> Kind:
    """Return ``kind`` for one tensor, which Adafactor may factor, and may visit once."""
    visited = math.prod(shape) <= traffic.counts()["visit_limit"]
    return replace(kind, factored=len(shape) >= 2, visited=visited)


def order(sizes: np.ndarray, blocks: int, walk: Walk = (1, 1)) -> np.ndarray:
    """Return all granules, numbered across items, in the order in which a grid touches them.

    Block b takes items b, b + blocks, b + 2 blocks, ... in the walk's order. ``sizes``, [items],
    has the number of granules of each item.
    """
    tiles, steps = walk
    items = np.arange(len(sizes))[::tiles]
    counts = sizes[items]
    position = np.repeat(np.arange(len(items)), counts)
    step = np.arange(len(position)) - np.repeat(np.cumsum(counts) - counts, counts)
    queued = pd.Series(counts).groupby(np.arange(len(items)) % blocks).cumsum().to_numpy()
    time = (queued - counts)[position] + step
    within = step if steps > 0 else counts[position] - 1 - step
    granules = (np.cumsum(sizes) - sizes)[items][position] + within
    return granules[np.lexsort((position % blocks, time))]


def tiles_of(numels: Sequence[int], blocks: int) -> list[np.ndarray]:
    """Return the elements of each tensor's tiles: the largest that keep blocks busy alike."""
    for size in traffic.counts()["tiles"]["sizes"]:
        tiles = [np.diff(np.append(np.arange(0, numel, size), numel)) for numel in numels]
        items = -np.sort(-np.concatenate([*tiles, np.zeros(blocks, int)]))
        turns = items[: len(items) // blocks * blocks].reshape(-1, blocks)
        if turns.sum(0).max() <= BALANCED * sum(numels) / blocks:
            break
    return tiles


class Lru:
    """A cache of ``capacity`` bytes that drops the least recently used granules."""

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


def adafactor(
    kind: Kind,
    shapes: Sequence[Sequence[int]],
    blocks: int,
    capacity: float,
    walks: Mapping[str, Walk] | None = None,
    granule: int | None = None,
) -> dict[str, float]:
    """Return the bytes that each pass loads from memory or stores to it.

    A granule is loaded if the cache lacks it, and stored once in each pass that writes it. The
    cache is empty at first. Statistics and scratch are left out, as if they stayed in the cache.

    Args:
        kind: the kind of the step.
        shapes: of the bucket's parameters, in order.
        blocks: the number of blocks that run at once.
        capacity: bytes that the cache holds.
        walks: of passes by name; a pass that is not named goes forwards. None for the kernels' own.
        granule: elements, see `GRANULE`; None for so many that a bucket takes a second or less.
    """
    shapes = [shape for shape in shapes if math.prod(shape)]
    walks = counted_walks() if walks is None else walks
    whole = sum(map(math.prod, shapes)) / MOST_GRANULES / GRANULE
    granule = granule or GRANULE << max(0, math.ceil(math.log2(whole)))
    own, sizes = [kind_of_tensor(kind, s) for s in shapes], list(map(math.prod, shapes))
    tiles, kinds = tiles_of(sizes, blocks), list(dict.fromkeys(own))
    elements = np.concatenate(tiles)  # [items]
    counts = -(-elements // granule)
    # For each granule: its item, the number of its tensor's kind, and its elements.
    item = np.repeat(np.arange(len(elements)), counts)
    kind_of = np.repeat(list(map(kinds.index, own)), list(map(len, tiles)))
    within = np.arange(len(item)) - np.repeat(np.cumsum(counts) - counts, counts)
    size = np.minimum(granule, elements[item] - granule * within)
    counted = [traffic.passes(each) for each in kinds]
    if None in counted:
        raise ValueError(f"{kind} was not counted; add it to host_counts.kinds() and count again")
    cache, moved = Lru(capacity), {}
    for name in dict.fromkeys(traffic.counts()["passes"]):
        streams = [passes.get(name, {}) for passes in counted]
        takes_part = np.array(list(map(bool, streams)))[kind_of]  # [items]
        if takes_part.any():
            turns = order(counts[takes_part], blocks, walks.get(name, (1, 1)))
            granules = np.flatnonzero(takes_part[item])[turns]
            moved[name] = _pass(streams, granules, kind_of[item[granules]], size[granules], cache)
    return moved


def _pass(
    streams: list[dict[str, np.ndarray]],
    granules: np.ndarray,
    kinds: np.ndarray,
    sizes: np.ndarray,
    cache: Lru,
) -> float:
    """Return the bytes of one pass over granules in the given order; ``streams`` are by kind."""
    # [kinds, tensors, (loaded, stored, touched)] per element, then [granules, tensors, 3] in total.
    each = np.array([[s.get(tensor, np.zeros(3)) for tensor in ELEMENTWISE] for s in streams])
    moved = each[kinds] * sizes[:, None, None]
    loads, touched = moved[..., 0].ravel() > 0, moved[..., 2].ravel()
    ids = (granules[:, None] * len(ELEMENTWISE) + np.arange(len(ELEMENTWISE))).ravel()
    missed = touched > 0
    used = zip(ids[missed].tolist(), touched[missed].tolist(), strict=True)
    missed[missed] = [not cache.touch(*each) for each in used]
    return float(touched[missed & loads].sum() + moved[..., 1].sum())
