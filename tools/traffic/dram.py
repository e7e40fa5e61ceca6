"""Bytes that memory delivers and takes in each pass of a step, given a cache between the passes."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench import traffic
from bench.traffic import Kind
from tools.traffic import l2
from tools.traffic.l2 import Walk

GRANULE = 8192
"""Elements that the cache keeps or drops together: four steps of a block; more in large buckets."""

MOST_GRANULES = 1 << 18
FORWARDS: dict[str, Walk] = {}  # Walks of passes by name; those not named go forwards

TILES_BACK = {"update_sums": Walk("backwards", "forwards")}
BACK_AND_FORTH = {"update_sums": Walk("backwards", "backwards")}
ELEMENTWISE = ("grad", "param", "extra", "exp_avg", "exp_avg_sq")


def counted_walks() -> dict[str, Walk]:
    return {name: Walk(**walk) for name, walk in traffic.counts()["tiles"]["walks"].items()}


@dataclass
class Layout:
    """A bucket cut into items of granules: each kind of tensor once, then arrays."""

    kinds: list[Kind]
    item_kind: np.ndarray  # [items], index into kinds
    item_granules: np.ndarray  # [items]
    elements: np.ndarray  # [granules]


def tile_elements(numel: int) -> int:
    return [tile for least, tile, _ in traffic.counts()["tiles"]["sizes"] if numel >= least][-1]


def kind_of_tensor(kind: Kind, shape: Sequence[int]) -> Kind:
    """Return what ``kind`` is for one tensor: whether Adafactor factors it, or visits it once."""
    visited = math.prod(shape) <= traffic.counts()["visit_limit"]
    return replace(kind, factored=len(shape) >= 2, visited=visited)


def granule_of(shapes: Sequence[Sequence[int]]) -> int:
    """Return the elements of a granule: so many that a bucket takes a second or less."""
    granule = GRANULE
    while sum(map(math.prod, shapes)) > granule * MOST_GRANULES:
        granule *= 2
    return granule


def layout(kind: Kind, shapes: Sequence[Sequence[int]], granule: int) -> Layout:
    kinds: list[Kind] = []
    parts = []
    for shape in shapes:
        numel = math.prod(shape)
        if numel == 0:
            continue
        own = kind_of_tensor(kind, shape)
        if own not in kinds:
            kinds.append(own)
        tile = tile_elements(numel)
        tiles = np.full(-(-numel // tile), tile)
        tiles[-1] = numel - tile * (len(tiles) - 1)
        granules = -(-tiles // granule)
        sizes = np.full(int(granules.sum()), granule)
        sizes[np.cumsum(granules) - 1] = tiles - granule * (granules - 1)
        parts.append((np.full(len(tiles), kinds.index(own)), granules, sizes))
    return Layout(kinds, *map(np.concatenate, zip(*parts, strict=True)))


def adafactor(
    kind: Kind,
    shapes: Sequence[Sequence[int]],
    grid: tuple[int, float],
    walks: Mapping[str, Walk] | None = None,
    streamed: Collection[str] = (),
    granule: int | None = None,
) -> dict[str, float]:
    """Return the bytes of each pass that go to or come from memory.

    Every tensor is loaded where the cache lacks it, and stored once wherever it is written.
    The cache is cold at first. Statistics of lines and scratch are left out, as if they stayed in
    the cache.

    Args:
        kind: of the step.
        shapes: of the bucket's parameters, in order.
        grid: blocks that run at once, and the bytes of the cache.
        walks: of the passes; None for those of the kernels.
        streamed: tensors that are loaded and stored past the cache, as if evicted first.
        granule: see `GRANULE`; None for what a bucket of this size takes.
    """
    walks = counted_walks() if walks is None else walks
    cut = layout(kind, shapes, granule or granule_of(shapes))
    counted = [_counted(each) for each in cut.kinds]
    names = {name for passes in counted for name in passes}
    blocks, capacity = grid
    cache, moved = l2.Lru(capacity), {}
    for name in sorted(names, key=traffic.counts()["passes"].index):
        streams = [passes.get(name, {}) for passes in counted]
        walked = l2.Grid(blocks, walks.get(name, Walk()))
        moved[name] = _pass(cut, streams, walked, cache, streamed)
    return moved


def _counted(kind: Kind) -> traffic.Passes:
    found = traffic.passes(kind)
    if found is None:
        raise ValueError(f"{kind} was not counted; add it to host_counts.kinds() and count again")
    return found


def _pass(
    cut: Layout,
    streams: list[dict[str, traffic.Stream]],
    grid: l2.Grid,
    cache: l2.Lru,
    streamed: Collection[str],
) -> float:
    items = np.flatnonzero(np.array([bool(s) for s in streams])[cut.item_kind])
    counts = cut.item_granules[items]
    offsets = np.cumsum(cut.item_granules) - cut.item_granules
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    granules = (np.repeat(offsets[items], counts) + within)[l2.order(counts, grid)]
    kinds = np.repeat(cut.item_kind, cut.item_granules)[granules]
    nothing = traffic.Stream(0.0, 0.0, 0.0)
    # [kinds, tensors, (loaded, stored, touched)] per element, then [granules, tensors, 3] in all.
    each = np.array([[s.get(tensor, nothing) for tensor in ELEMENTWISE] for s in streams])
    moved = each[kinds] * cut.elements[granules][:, None, None]
    loads, touched = moved[..., 0].ravel() > 0, moved[..., 2].ravel()
    ids = (granules[:, None] * len(ELEMENTWISE) + np.arange(len(ELEMENTWISE))).ravel()
    cached = np.tile([name not in streamed for name in ELEMENTWISE], len(granules)) & (touched > 0)
    missed = touched > 0
    missed[cached] = cache.replay(ids[cached], touched[cached])
    return float(touched[missed & loads].sum() + moved[..., 1].sum())
