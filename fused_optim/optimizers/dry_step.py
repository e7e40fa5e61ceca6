"""The next step, worked out on the eager backend's own functions and thrown away.

What it counts is for `fused_optim.optimizers.numerics` to judge. Nothing is written, no temporary
is larger than a block, but for the second moments of Adafactor's vectors, and nothing waits for a
device until all is counted.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from fused_optim import precision
from fused_optim.backends.eager import adafactor, adamw
from fused_optim.backends.eager import adafactor_stages as stages
from fused_optim.backends.eager.gradients import preparation
from fused_optim.backends.eager.tiles import part
from fused_optim.backends.interface import STATE_FIELDS, Bucket, Launch, TensorEntry
from fused_optim.ops import FAMILIES
from fused_optim.plan import collect
from fused_optim.plan.work import Work
from fused_optim.precision import encoding, state

_STATISTICS = ("exp_avg_sq", "max_exp_avg_sq")  # what Adafactor writes before it updates


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
    family = FAMILIES[optimizer._family]
    buckets: dict[Any, Bucket] = {}
    members: dict[Any, list[Examined]] = {}
    for (group_index, index, param, grad, number), kind in zip(pending, kinds, strict=True):
        bucket = buckets.setdefault(kind.key, Bucket(kind.key))
        found = optimizer.state.get(param, {})
        entry = _entry(param, grad, found, kind.spec, family.statistics is not None)
        entry.row, entry.number = len(bucket.rows), number
        group = optimizer.settings(optimizer.param_groups[group_index])
        variant = optimizer._row_variant(group, index, param)
        bucket.rows.append(optimizer._row(group, int(found.get("step", 0)) + 1, variant))
        bucket.entries.append(entry)
        members.setdefault(kind.key, []).append(
            Examined((group_index, index), param, grad, found, kind.keys, kind.key.mode, entry)
        )
    launches = [(bucket, Launch(seed=optimizer.seed)) for bucket in buckets.values()]
    sums = None
    if family.statistics is not None:
        sums = [adafactor.adafactor_statistics(bucket, launch) for bucket, launch in launches]
    works = [(Work(bucket.key, bucket, None), launch) for bucket, launch in launches]
    optimizer._clip(works, sums)
    walk = _walk_adamw if sums is None else _walk_adafactor
    for bucket, launch in launches:
        for one in members[bucket.key]:
            _count_non_finite(one)
        walk(bucket, launch, members[bucket.key])
    examined = [one for ones in members.values() for one in ones]
    _fetch(examined)
    return sorted(examined, key=lambda one: one.place)


def _entry(
    param: torch.Tensor,
    grad: torch.Tensor,
    found: dict[str, Any],
    spec: tuple[state.StateTensor, ...],
    copies_statistics: bool,
) -> TensorEntry:
    """Return what a step would be given, but for tensors of zeros that take no memory.

    Extra state of zeros, as before the first step, stands for the parameter's own value.
    """
    entry = TensorEntry(param.detach(), grad)
    for tensor in spec:
        if tensor.field == "rms":
            continue
        value = found.get(tensor.key)
        if value is None:
            zero = torch.zeros((), dtype=tensor.dtype, device=param.device)
            value = zero.expand(tensor.shape(param))
        if copies_statistics and tensor.field in _STATISTICS:
            value = value.clone(memory_format=torch.contiguous_format)
        setattr(entry, tensor.field, value)
    return entry


def _count_non_finite(one: Examined) -> None:
    tensors = {"gradient": one.grad, "parameter": one.param.detach(), **one.state}
    for name, tensor in tensors.items():
        if name == "remainder":  # its bits are those of an integer
            continue
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            for _, (block,) in encoding.blocks([tensor]):
                one.count("non-finite", name, ~block.isfinite())


def _walk_adamw(bucket: Bucket, launch: Launch, ones: list[Examined]) -> None:
    dtype = precision.math_dtype(bucket.key.dtype)
    for index, (entry, one) in enumerate(zip(bucket.entries, ones, strict=True)):
        row = bucket.rows[entry.row]
        prepare = preparation(row, launch, dtype, index)
        tensors = [entry.param, entry.grad, entry.extra]
        tensors += [entry.exp_avg, entry.exp_avg_sq, entry.max_exp_avg_sq]
        names = [one.keys[STATE_FIELDS.index(f)] for f in STATE_FIELDS[:3]]
        for _, (param, grad, extra, *moments) in encoding.blocks(tensors):
            g, old = prepare(grad), encoding.decode(param, extra, one.mode)
            new = old.clone()
            registers = [None if t is None else t.to(dtype, copy=True) for t in moments]
            adamw.update_(new, g, *registers, row)
            one.count_update(param, old, new, g, row.step_size != 0.0)
            for name, moment, register in zip(names, moments, registers, strict=True):
                if moment is not None:
                    one.count_overflow(name, register.to(moment.dtype), moment, g)


def _walk_adafactor(bucket: Bucket, launch: Launch, ones: list[Examined]) -> None:
    works = [work for work in bucket.scratch if work.tiles]
    stages.finalise_(works, launch)
    stages.sum_updates(works)
    stages.scale(works)
    for work in works:
        one = ones[work.index]
        # All of the gradient goes into each statistic, and they into every update: where one
        # element is not finite, nothing else is to blame for what becomes of the rest.
        clean = one.counts["non-finite", "gradient"] == 0
        g = torch.where(clean, 0.0, torch.nan)
        for field in _STATISTICS:
            name, new = one.keys[STATE_FIELDS.index(field)], getattr(one.entry, field)
            if new is not None:
                one.count_overflow(name, new, one.state.get(name, torch.zeros_like(g)), g)
        moves = work.alpha != 0
        decay = stages.decay_factor(work)
        for _, at, u in stages.scaled_updates(work):
            g = torch.where(clean, work.prepare(part(work.grad, at)), torch.nan)
            param, extra = (part(tensor, at) for tensor in (work.param, work.extra))
            old = encoding.decode(param, extra, one.mode)
            one.count_update(param, old, old * decay - u, g, moves)
            if work.exp_avg is not None:
                moment = part(work.exp_avg, at)
                one.count_overflow("exp_avg", u.to(moment.dtype), moment, g)


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
