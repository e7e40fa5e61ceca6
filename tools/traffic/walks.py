"""In which order Adafactor's passes walk through a matrix, read off the traces of its kernels."""

from typing import Any

import numpy as np

from bench.traffic import Kind
from tools.traffic import host_counts

KIND = Kind("adafactor", "bfloat16", "bfloat16", "stochastic", None)
SHAPES = ((1024, 1024), (4096, 1024))  # One of each size of tile

ONE_ITEM_EACH = 1 << 20  # Blocks enough for every item to have its own


def measure() -> dict[str, Any]:
    """Return sizes of tiles from a number of elements on, and the walk of each pass."""
    sizes, walks = [], {}
    for rows, cols in SHAPES:
        bucket = host_counts.bucket_of(KIND, [(rows, cols)])
        steps = host_counts.traces(bucket, ONE_ITEM_EACH)
        grad = bucket.entries[0].grad
        for step in steps:
            found = step.of(grad)
            if len(found):
                elements, turns, walks[step.name] = walk_of(found, grad.data_ptr())
        sizes.append([rows * cols, elements, turns])
    sizes[0][0] = 0  # what holds for the smallest traced holds for those below
    return {"sizes": sizes, "walks": walks}


def walk_of(found: np.ndarray, first: int) -> tuple[int, int, dict[str, str]]:
    """Return elements and steps of a tile, and the direction of tiles and of steps within them.

    Args:
        found: accesses to a 2-byte gradient, each block's an item.
        first: the gradient's address.
    """
    index = (found["address"] - first) // 2
    blocks = np.unique(found["block"])
    lowest = np.array([index[found["block"] == block].min() for block in blocks])
    one = found["block"] == blocks[0]
    thread = index[one & (found["thread"] == 0)]
    walk = {"tiles": _direction(lowest), "steps": _direction(thread)}
    return int(found["bytes"][one].sum()) // 2, len(thread), walk


def _direction(values: np.ndarray) -> str:
    """Return where values go; a kernel may load a few neighbours at a time, in any order."""
    for together in (1, 2, 4):
        groups = values[: len(values) // together * together].reshape(-1, together)
        differences = np.diff(groups.mean(1))
        if (differences > 0).all():
            return "forwards"
        if (differences < 0).all():
            return "backwards"
    return "mixed"
