"""Runs the ops of the next step on copies, counts what storage would lose, and drops the copies.

`fused_optim.optimizers.numerics` judges the counts. A parameter's copy has the dtype of the
update's math, so it shows what storing the result would lose. An elementwise update runs on one
block at a time, any other on one tensor at a time. Nothing that the optimizer holds is written, and
nothing waits for a device until everything is counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from fused_optim import precision
from fused_optim.backends import dispatch
from fused_optim.backends.interface import STATE_FIELDS, Bucket, BucketKey, Launch, Row, TensorEntry
from fused_optim.distributed import geometry
from fused_optim.ops import FAMILIES, Family
from fused_optim.plan import collect, exchange, spread
from fused_optim.plan.work import Work
from fused_optim.precision import encoding, moments, state

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


@dataclasses.dataclass
class Examined:
    """One parameter under examination. Counts are 0-d tensors on its device until the end."""

    place: tuple[int, int]
    entry: TensorEntry
    state: dict[str, Any]
    keys: tuple[str | None, ...]  # keys of the state, by STATE_FIELDS
    mode: str
    counts: dict[tuple[str, str], torch.Tensor] = dataclasses.field(default_factory=dict)

    def count(self, kind: str, tensor: str, which: torch.Tensor) -> None:
        """Add the number of elements of a block for which this holds."""
        key = (kind, tensor)
        self.counts[key] = self.counts.get(key, 0) + which.sum()

    def count_overflow(
        self, tensor: str, stored: torch.Tensor, before: torch.Tensor, g: torch.Tensor
    ) -> None:
        """Count values that were finite, on a finite gradient, and whose stored form is not."""
        self.count("overflow", tensor, ~stored.isfinite() & before.isfinite() & g.isfinite())

    def count_update(
        self,
        param: torch.Tensor,
        old: torch.Tensor,
        new: torch.Tensor,
        g: torch.Tensor,
        moves: torch.Tensor | bool,
    ) -> None:
        """Count a block's updates, those that are lost, and overflows.

        An update is lost if every stored bit stays as it was. With ``kahan`` that would depend on
        the present compensation. So an update counts as lost there if it is less than the coarsest
        spacing that the compensation may have: repeating such an update comes to a halt.
        """
        shown, held = _stored(param, new, self.mode)
        wanted = (g != 0) & g.isfinite() & moves
        if self.mode == "kahan":
            lost = (new - old).abs() < _coarsest_spacing(param)
        else:
            lost = held == old
        self.count("updates", "parameter", wanted)
        self.count("vanishing", "parameter", wanted & lost)
        self.count_overflow("parameter", shown, param, g)


def examine(optimizer: Any, pending: list) -> list[Examined]:
    """Run the step on copies and return every parameter's counts, as numbers."""
    kinds = collect.kinds(optimizer, [(group, param) for group, _, param, _, _ in pending])
    buckets: dict[Any, Bucket] = {}
    members: dict[Any, list[Examined]] = {}
    homes: list[tuple[Bucket, TensorEntry]] = []
    for (group_index, index, param, grad, number), kind in zip(pending, kinds, strict=True):
        bucket = buckets.setdefault(kind.key, Bucket(kind.key))
        found = optimizer.state.get(param, {})
        entry = _entry(param, grad, found, kind.spec)
        entry.row, entry.number = len(bucket.rows), number
        group = optimizer.settings(optimizer.param_groups[group_index])
        variant = optimizer._row_variant(group, index, param)
        bucket.rows.append(optimizer._row(group, int(found.get("step", 0)) + 1, variant))
        bucket.entries.append(entry)
        members.setdefault(kind.key, []).append(
            Examined((group_index, index), entry, found, kind.keys, kind.key.mode)
        )
        homes.append((bucket, entry))
    works = [
        (Work(key, bucket, None), Launch(seed=optimizer.seed)) for key, bucket in buckets.items()
    ]
    split = spread.spread_of(optimizer)
    exchanged = exchange.exchange_of(split, [work for work, _ in works], homes)
    optimizer._clip_launches(works, None, exchanged)
    for work, launch in works:
        for index, one in enumerate(members[work.key]):
            _count_non_finite(one)
            _count_step(one, work.key, work.bucket.rows[index], _launch_of(launch, index))
    examined = [one for ones in members.values() for one in ones]
    _fetch(examined)
    return sorted(examined, key=lambda one: one.place)


def _entry(
    param: torch.Tensor,
    grad: torch.Tensor,
    found: dict[str, Any],
    spec: tuple[state.StateTensor, ...],
) -> TensorEntry:
    """Return a parameter's state; tensors that don't exist yet are zeros that take no memory.

    Extra state of zeros stands for the parameter's own value, as before the first step. The root
    mean square is left out, because a step only writes it.
    """
    here = geometry.local_of(param.detach())
    entry = TensorEntry(here, grad, shard=geometry.shard_of(param))
    for tensor in spec:
        if tensor.field == "rms":
            continue
        value = geometry.local_of(found.get(tensor.key))
        if value is None:
            zero = torch.zeros((), dtype=tensor.dtype, device=here.device)
            value = zero.expand(tensor.shape(here))
        setattr(entry, tensor.field, value)
    return entry


def _launch_of(launch: Launch, index: int) -> Launch:
    """Return the launch of one tensor of a bucket by itself."""
    if launch.clip is None or not launch.clip_per_tensor:
        return launch
    return dataclasses.replace(launch, clip=launch.clip[index], clip_per_tensor=False)


def _count_non_finite(one: Examined) -> None:
    tensors = {"gradient": one.entry.grad, "parameter": one.entry.param, **one.state}
    for name, tensor in tensors.items():
        if name == "remainder":  # its bits are not those of a float
            continue
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            for _, (block,) in encoding.blocks([geometry.local_of(tensor)]):
                one.count("non-finite", name, ~block.isfinite())


def _count_step(one: Examined, key: BucketKey, row: Row, launch: Launch) -> None:
    """Run the step's ops on copies of one tensor and count what they did."""
    family, eager = FAMILIES[key.op], dispatch.load("eager")
    dtype = precision.math_dtype(key.dtype)
    copied = BucketKey(key.op, key.device, dtype, "none", key.amsgrad, False)
    moves = getattr(row, family.rate) != 0.0
    for part in _parts(one.entry, family):
        value = encoding.decode(part.param, part.extra, one.mode)
        new = dataclasses.replace(part, param=value.to(dtype, copy=True), row=0, extra=None)
        for field in _MOMENTS:
            if getattr(new, field) is not None:
                copy = getattr(new, field).clone(memory_format=torch.contiguous_format)
                setattr(new, field, copy)
        bucket = Bucket(copied, [new], [row])
        for op in family.ops:
            getattr(eager, op)(bucket, launch)
        _count_parameter(one, part, new.param, moves, family)
        g = part.grad if family.elementwise else _cleanliness(one)
        for field in _MOMENTS:
            if getattr(new, field) is not None:
                name = one.keys[STATE_FIELDS.index(field)]
                one.count_overflow(name, getattr(new, field), getattr(part, field), g)


def _parts(entry: TensorEntry, family: Family) -> Iterator[TensorEntry]:
    """Yield the pieces of a tensor on which ops may run separately: blocks, or the whole tensor."""
    if not family.elementwise:
        yield entry
        return
    held = [getattr(entry, field) for field in _MOMENTS]
    blocks = moments.blocks_of(entry.param, entry.grad, entry.extra, held)
    for first, (param, grad, extra, *beside) in blocks:
        loaded = zip(beside, moments.load(held, beside, first, param), strict=True)
        shown = (read if block is None else block for block, read in loaded)  # records are read
        fields = dict(zip(_MOMENTS, shown, strict=True))
        yield dataclasses.replace(entry, param=param, grad=grad, extra=extra, **fields)


def _cleanliness(one: Examined) -> torch.Tensor:
    """Return 0, or NaN where some element of the gradient is not finite.

    Every update of a matrix depends on all elements of its gradient, by way of the statistics. So
    one element that is not finite explains every other result that is not.
    """
    return torch.where(one.counts["non-finite", "gradient"] == 0, 0.0, torch.nan)


def _count_parameter(
    one: Examined, part: TensorEntry, new: torch.Tensor, moves: bool, family: Family
) -> None:
    for _, (param, grad, extra, stepped) in encoding.blocks(
        [part.param, part.grad, part.extra, new]
    ):
        old = encoding.decode(param, extra, one.mode)
        g = grad if family.elementwise else grad + _cleanliness(one)
        one.count_update(param, old, stepped, g, moves)


def _stored(
    param: torch.Tensor, value: torch.Tensor, mode: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stored form of ``value`` in a parameter block, and the value that this preserves.

    Stochastic rounding preserves all of ``value``, on average.
    """
    if mode == "none":
        return value, value
    if mode == "stochastic":
        return value.to(param.dtype), value
    key = precision.extra_state(mode, param.dtype)
    extra = None if key is None else torch.empty(param.shape, dtype=key[1], device=param.device)
    shown = torch.empty(param.shape, dtype=param.dtype, device=param.device)
    encoding.encode_(shown, extra, value, mode, None, 0)
    return shown, encoding.decode(shown, extra, mode)


def _coarsest_spacing(param: torch.Tensor) -> torch.Tensor:
    """Return the widest spacing that the compensations of a block's elements may have.

    A compensation is of the parameter's dtype and at most half the parameter's spacing. Its own
    spacing is widest from a quarter on: ``eps**2 / 4`` of the power of two below the parameter,
    or the dtype's smallest number. An update of less than half of that is rounded away. One of
    less than all of it doesn't take the parameter over to its next value: the compensation stops
    one short of half the parameter's spacing, which would be a tie.
    """
    info = torch.finfo(param.dtype)
    power = (param.float().view(torch.int32) & 0x7F800000).view(torch.float32)
    return (power * (info.eps**2 / 4)).clamp_(min=info.smallest_normal * info.eps)


def _fetch(examined: list[Examined]) -> None:
    """Turn counts into numbers: one transfer per device."""
    by_device: dict[torch.device, list[tuple[dict, Any]]] = {}
    for one in examined:
        for key in one.counts:
            by_device.setdefault(one.entry.param.device, []).append((one.counts, key))
    for places in by_device.values():
        numbers = torch.stack([counts[key] for counts, key in places]).tolist()
        for (counts, key), number in zip(places, numbers, strict=True):
            counts[key] = number
