"""The next step, run by its own ops on copies and thrown away.

What it counts is for `fused_optim.optimizers.numerics` to judge. The parameter's copy holds its
value as the update's math does, so that what storing it loses shows. Where an update knows no
element but its own, copies are of a block at a time, else of one tensor at a time. Nothing that the
optimizer holds is written, and nothing waits for a device until all is counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from fused_optim import precision
from fused_optim.backends import dispatch
from fused_optim.backends.interface import STATE_FIELDS, Bucket, BucketKey, Launch, Row, TensorEntry
from fused_optim.ops import FAMILIES, Family
from fused_optim.plan import collect
from fused_optim.plan.work import Work
from fused_optim.precision import encoding, state

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


@dataclasses.dataclass
class Examined:
    """One parameter under examination. Counts are 0-d tensors on its device until the end."""

    place: tuple[int, int]
    param: torch.Tensor
    grad: torch.Tensor
    state: dict[str, Any]
    keys: tuple[str | None, ...]  # of the state, by STATE_FIELDS
    mode: str
    entry: TensorEntry
    counts: dict[tuple[str, str], torch.Tensor] = dataclasses.field(default_factory=dict)

    def count(self, kind: str, tensor: str, which: torch.Tensor) -> None:
        """Add how many elements of a block are so."""
        key = (kind, tensor)
        self.counts[key] = self.counts.get(key, 0) + which.sum()

    def count_overflow(
        self, tensor: str, stored: torch.Tensor, before: torch.Tensor, g: torch.Tensor
    ) -> None:
        """Count what was finite, on a finite gradient, and is not once it is stored."""
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

        An update is lost where it leaves what is stored as it is. With ``kahan`` that would depend
        on where the compensation happens to be. There an update counts as lost where it is less
        than the coarsest spacing that its compensation may have: repeated, it comes to a halt.
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
    """Work the step out and return every parameter's counts, as numbers."""
    kinds = collect.kinds(optimizer, [(group, param) for group, _, param, _, _ in pending])
    buckets: dict[Any, Bucket] = {}
    members: dict[Any, list[Examined]] = {}
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
            Examined((group_index, index), param, grad, found, kind.keys, kind.key.mode, entry)
        )
    works = [
        (Work(key, bucket, None), Launch(seed=optimizer.seed)) for key, bucket in buckets.items()
    ]
    optimizer._clip(works, None)
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
    """Return what a step would be given, but for tensors of zeros that take no memory.

    Extra state of zeros, as before the first step, stands for the parameter's own value. The root
    mean square, which a step only writes, is left out.
    """
    entry = TensorEntry(param.detach(), grad)
    for tensor in spec:
        if tensor.field == "rms":
            continue
        value = found.get(tensor.key)
        if value is None:
            zero = torch.zeros((), dtype=tensor.dtype, device=param.device)
            value = zero.expand(tensor.shape(param))
        setattr(entry, tensor.field, value)
    return entry


def _launch_of(launch: Launch, index: int) -> Launch:
    """Return the launch of one tensor of a bucket by itself."""
    if launch.clip is None or not launch.clip_per_tensor:
        return launch
    return dataclasses.replace(launch, clip=launch.clip[index], clip_per_tensor=False)


def _count_non_finite(one: Examined) -> None:
    tensors = {"gradient": one.grad, "parameter": one.param.detach(), **one.state}
    for name, tensor in tensors.items():
        if name == "remainder":  # its bits are those of an integer
            continue
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            for _, (block,) in encoding.blocks([tensor]):
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
    """Yield what the ops may be run on by itself: blocks of a tensor, or all of it."""
    if not family.elementwise:
        yield entry
        return
    tensors = [entry.param, entry.grad, entry.extra, *(getattr(entry, f) for f in _MOMENTS)]
    for _, (param, grad, extra, *moments) in encoding.blocks(tensors):
        fields = dict(zip(_MOMENTS, moments, strict=True))
        yield dataclasses.replace(entry, param=param, grad=grad, extra=extra, **fields)


def _cleanliness(one: Examined) -> torch.Tensor:
    """Return 0, or NaN where some element of the gradient is not finite.

    All of the gradient goes into each statistic of a matrix, and they into every update: where one
    element is not finite, nothing else is to blame for what becomes of the rest.
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
    """Return what a parameter block would show of ``value``, and what it would keep of it.

    Stochastic rounding keeps all of it, on average.
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
            by_device.setdefault(one.param.device, []).append((one.counts, key))
    for places in by_device.values():
        numbers = torch.stack([counts[key] for counts, key in places]).tolist()
        for (counts, key), number in zip(places, numbers, strict=True):
            counts[key] = number
