"""The lists of the sweep: equal tensors, in number and size as their names say."""

from __future__ import annotations

import math
import re

from bench.shapes import SHAPES, Shapes

FIXED_SIZE, FIXED_TENSORS = "count", "size"
"""What is swept: the number of tensors of equally many parameters, or their size."""

_NAME = re.compile(r"sweep-(count|size)-(\d+)x(\d+)")


def kind_of(name: str) -> str | None:
    """Return what a list is a point of, or None where it is none of the sweep's."""
    match = _NAME.fullmatch(name)
    return match[1] if match else None


def add(kind: str, tensors: int, numel: int) -> str:
    """Make a list known to `bench.shapes` and return its name.

    Args:
        kind: what is swept.
        tensors: how many there are.
        numel: of each; a matrix as square as it gets.
    """
    name = f"sweep-{kind}-{tensors}x{numel}"
    SHAPES.setdefault(name, [matrix(numel)] * tensors)
    return name


def matrix(numel: int) -> tuple[int, ...]:
    """Return the shape of a matrix of that many elements, or of a vector where it would be thin."""
    rows = next(r for r in range(math.isqrt(numel), 0, -1) if numel % r == 0)
    return (rows, numel // rows) if 16 * rows >= numel // rows else (numel,)


def names_of(kind: str, points: list[tuple[int, int]]) -> list[str]:
    """Return the names of several lists, each a number of tensors and their size."""
    return [add(kind, tensors, numel) for tensors, numel in points]


def shapes_of(name: str) -> Shapes:
    """Return a list by its name, which another process may have made up."""
    match = _NAME.fullmatch(name)
    if match and name not in SHAPES:
        add(match[1], int(match[2]), int(match[3]))
    return SHAPES[name]
