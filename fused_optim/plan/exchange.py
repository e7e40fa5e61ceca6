"""What a step adds up over processes where they hold parts of its tensors.

Every process lays its summands out by the parameters of the optimizer, in their order, whether they
have gradients or elements here or not. So all-reduces of different processes match.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fused_optim.backends.interface import Bucket, TensorEntry
from fused_optim.distributed import agreement, reduce
from fused_optim.distributed.reduce import Ranks, Sums
from fused_optim.plan.spread import Member, Spread
from fused_optim.plan.work import Work

_Link = tuple[int, tuple[Ranks, ...], torch.Tensor, torch.Tensor]


class Exchange:
    """The sums of one step's buckets that go over processes.

    Args:
        spread: the parameters that are split.
        here: for each bucket, the indices and parameters of those that have a gradient here.

    Attributes:
        numbers: of the parameters that have a gradient here.
    """

    def __init__(self, spread: Spread, here: list[list[tuple[int, Member]]]) -> None:
        self._spread = spread
        self._here = here
        self.numbers = sorted(member.number for members in here for _, member in members)
        self._lanes = agreement.lanes_of(self.numbers)
        self._digits: torch.Tensor | None = None
        self._links: list[_Link] | None = None

    def first(
        self, works: Sequence[Work], squares: list[torch.Tensor] | None, *, statistics: bool
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Add up what is known before gradients are clipped, by one all-reduce for each group.

        Args:
            works: the step's buckets.
            squares: for each bucket the sums of squares of its gradients, ``[entries]``. Those of
                parts become those of whole tensors; None where nobody wants them.
            statistics: whether Adafactor's F1 and F2 are exchanged too.

        Returns:
            Whether all processes have gradients of the same parameters, ``[]`` bool; and tensors
            that add up to the sum of all squares, the same on every process.
        """
        members = self._spread.members
        dtype = self._dtype(statistics)
        lanes = Sums([("lanes", tuple(self._spread.groups), agreement.LANES)], dtype)
        if self._digits is None:
            self._digits = torch.tensor(self._lanes, dtype=dtype).to(lanes["lanes"].device)
        lanes["lanes"].copy_(self._digits)
        each = Sums([(m.number, m.everywhere, 1) for m in members if squares is not None], dtype)
        of_statistics = Sums(
            [
                ((member.number, name), over, size)
                for member in members
                if statistics
                for name, over, size in member.statistics()
            ],
            dtype,
        )
        alone = [] if squares is None else self._put(each, squares)
        self._copy(works, of_statistics, statistics, back=False)
        reduce.together([lanes, each, of_statistics])
        self._copy(works, of_statistics, statistics, back=True)
        if squares is not None:
            self._take(each, squares)
        return agreement.agree(lanes["lanes"]), [*alone, *each.buffers.values()]

    def second(self, works: Sequence[Work]) -> None:
        """Add up F6, the sums of the squares of updates, by one all-reduce for each group."""
        members = self._spread.members
        sums = Sums([(m.number, m.everywhere, 1) for m in members], self._dtype(True))
        held = [
            (member.number, work.shard_update_sum(index))
            for work, index, member in self._held(works)
        ]
        held = [(sums[number].view(()), value) for number, value in held if value is not None]
        slots, values = [slot for slot, _ in held], [value for _, value in held]
        if held:
            torch._foreach_copy_(slots, values)
        reduce.together([sums])
        if held:
            torch._foreach_copy_(values, slots)

    def _dtype(self, statistics: bool) -> torch.dtype:
        """Return the dtype of sums: float32 where there may be many, but for float64 parameters."""
        wide = not statistics or any(m.dtype is torch.float64 for m in self._spread.members)
        return torch.float64 if wide else torch.float32

    def _held(self, works: Sequence[Work]) -> Iterator[tuple[Work, int, Member]]:
        """Yield the parts that are here: their bucket, index there and parameter."""
        for work, here in zip(works, self._here, strict=True):
            for index, member in here:
                yield work, index, member

    def _copy(self, works: Sequence[Work], sums: Sums, statistics: bool, *, back: bool) -> None:
        """Copy Adafactor's sums of the parts to where they are added up, or ``back``."""
        if not statistics:
            return
        slots, values = [], []
        for work, index, member in self._held(works):
            for name, value in work.shard_sums(index).items():
                if (member.number, name) in sums:
                    slots.append(sums[member.number, name].view(value.shape))
                    values.append(value)
        if slots:
            torch._foreach_copy_(*((values, slots) if back else (slots, values)))

    def _linked(self, each: Sums, squares: list[torch.Tensor]) -> list[_Link]:
        """Return which entries of a bucket go to which numbers: (bucket, over, from, to)."""
        if self._links is None:
            self._links = []
            for bucket, here in enumerate(self._here):
                places: dict[tuple[Ranks, ...], tuple[list[int], list[int]]] = {}
                for index, member in here:
                    over, start = each.place(member.number)
                    source, target = places.setdefault(over, ([], []))
                    source.append(index)
                    target.append(start)
                for over, (source, target) in places.items():
                    devices = squares[bucket].device, each.buffers[over].device
                    indices = map(torch.tensor, (source, target))
                    self._links.append((bucket, over, *map(torch.Tensor.to, indices, devices)))
        return self._links

    def _put(self, each: Sums, squares: list[torch.Tensor]) -> list[torch.Tensor]:
        """Put the parts' sums where they are added up; return the buckets' sums without them."""
        alone = list(squares)
        for bucket, over, source, target in self._linked(each, squares):
            buffer = each.buffers[over]
            buffer[target] = squares[bucket][source].to(buffer)
            alone[bucket] = alone[bucket].index_fill(0, source, 0.0)
        return alone

    def _take(self, each: Sums, squares: list[torch.Tensor]) -> None:
        """Replace the parts' sums of squares by those of the whole tensors."""
        for bucket, over, source, target in self._linked(each, squares):
            mine = squares[bucket]
            squares[bucket] = mine.index_copy(0, source, each.buffers[over][target].to(mine))


def exchange_of(
    spread: Spread, works: Sequence[Work], homes: Sequence[tuple[Bucket, TensorEntry]]
) -> Exchange | None:
    """Return the exchange of a step's sums, or None where no parameter is split.

    Args:
        spread: the parameters that are split.
        works: the step's buckets.
        homes: each updated parameter's bucket and entry.
    """
    if not spread:
        return None
    members = {member.number: member for member in spread.members}
    places = {id(work.bucket): index for index, work in enumerate(works)}
    index_of = {id(e): i for work in works for i, e in enumerate(work.bucket.entries)}
    found: list[list[tuple[int, Member]]] = [[] for _ in works]
    for bucket, entry in homes:
        if entry.number in members:
            found[places[id(bucket)]].append((index_of[id(entry)], members[entry.number]))
    return Exchange(spread, found)
