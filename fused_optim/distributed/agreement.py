"""Whether processes agree: on what they optimize, and on which parameters have gradients."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from fused_optim.distributed.reduce import Ranks, reduce_

DIGITS = 16
LANES = 1 + 2 * DIGITS
"""Numbers that tell whether processes agree: 1, digits of a digest, and their squares."""


def lanes_of(items: Iterable[Any]) -> list[float]:
    """Return what `agree` takes of a process whose view is ``items``; summed, not compared.

    Of equal numbers, and no others, the sum of squares times their count is the square of the sum.
    All are small whole numbers, and their sums exact in float32 for up to 74,000 processes.
    """
    text = hashlib.sha256(repr(list(items)).encode()).hexdigest()[:DIGITS]
    digits = [float(int(digit, 16)) for digit in text]
    return [1.0, *digits, *(digit**2 for digit in digits)]


def agree(lanes: torch.Tensor) -> torch.Tensor:
    """Return whether all processes had the same lanes, of whose sums ``lanes`` are; ``[]`` bool."""
    count, digits, squares = lanes.double().split([1, DIGITS, DIGITS])
    return (count * squares == digits.square()).all()


def check(groups: Sequence[Ranks], items: Sequence[tuple[str, Any]], what: str) -> None:
    """Refuse to go on where processes differ; costs one all-reduce of 264 bytes for each group.

    Args:
        groups: of processes, all of which call this.
        items: what should be the same everywhere: (its name in messages, its value).
        what: the message, with ``%s`` for what differs.

    Raises:
        RuntimeError: on every process, with the first item that differs.
    """
    if not groups:
        return
    over = tuple(groups)
    lanes = torch.tensor(lanes_of(items), dtype=torch.float64, device=over[0].device)
    reduce_([(over, lanes)])
    if not bool(agree(lanes)):
        raise RuntimeError(what % difference(groups, items))


def difference(groups: Sequence[Ranks], items: Sequence[tuple[str, Any]]) -> str:
    """Return in which of their items processes differ; all of them call this."""
    views: dict[int, list[tuple[str, Any]]] = {
        torch.distributed.get_rank(): [
            (name, value if isinstance(value, str) else repr(value)) for name, value in items
        ]
    }
    for one in groups:
        gathered: list[Any] = [None] * len(one.ranks)
        torch.distributed.all_gather_object(gathered, views, group=one.group)
        for other in gathered:
            views.update(other)
    (first, mine), *others = sorted(views.items())
    for rank, theirs in others:
        for (name, value), (other_name, other) in zip(mine, theirs, strict=False):
            if (name, value) != (other_name, other):
                return _told(first, name, value, rank, other_name, other)
        if len(mine) != len(theirs):
            longer, which = (mine, first) if len(mine) > len(theirs) else (theirs, rank)
            name = longer[min(len(mine), len(theirs))][0]
            return f"rank {which} has {name}, which rank {rank if which == first else first} lacks"
    return "they differed a moment ago"


def _told(first: int, name: str, value: str, rank: int, other_name: str, other: str) -> str:
    if name == other_name:
        return f"{name} is {value} on rank {first} and {other} on rank {rank}"
    return f"rank {first} has {name} where rank {rank} has {other_name}"
