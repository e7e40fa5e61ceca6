"""Sorts parameters into buckets, which are launched together, and gives each tensor its scalars."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import torch

from fused_optim import errors, precision
from fused_optim.backends import dispatch
from fused_optim.backends.interface import STATE_FIELDS, Bucket, BucketKey, Shape, TensorEntry
from fused_optim.distributed import geometry
from fused_optim.ops import FAMILIES
from fused_optim.plan import capture
from fused_optim.plan import records as plan_records
from fused_optim.plan.owner import Owner
from fused_optim.precision import checks, packed_state, state

Pending = tuple[int, int, torch.Tensor, torch.Tensor, int]
"""(group index, index in the group, parameter, gradient, number in ``state_dict`` order).

The parameter is the user's own, the key of its state; the gradient is the part that is here.
"""

RowKey = tuple[int, int, Hashable]
"""What a row's scalars depend on: (group index, step count, variant)."""


class Kind(NamedTuple):
    """What follows from a parameter's group, device, dtype and number of dimensions."""

    key: BucketKey
    spec: tuple[state.StateTensor, ...]
    keys: tuple[str | None, ...]  # of the state, by STATE_FIELDS; None without a tensor
    backend: str


def parameters_with_gradients(optimizer: Owner) -> list[Pending]:
    """Return the parameters that a step updates, all checked.

    Each step checks them, because a user may replace a parameter after it was added.

    Raises:
        ValueError: a parameter can't be updated.
        RuntimeError: a gradient does not fit its parameter.
    """
    found: list[Pending] = []
    name, seen = type(optimizer).__name__, set()
    for group_index, index, param, number in numbered(optimizer):
        grad = getattr(param, "main_grad", None)
        if grad is None:
            grad = param.grad
        if grad is None:
            continue
        where = errors.place(optimizer.param_groups[group_index], group_index, index)
        checks.check_param(param, f"{name}: {where}")
        grad = checks.local_gradient(grad, param, name, where)
        if id(param) in seen:
            raise ValueError(f"{name}: {where} is listed twice; list each parameter once")
        seen.add(id(param))
        found.append((group_index, index, param, grad, number))
    return found


def trained_parameters(optimizer: Owner) -> list[Pending]:
    """Return the parameters that may get gradients, all checked. Each stands for its gradient too.

    Raises:
        ValueError: a parameter can't be updated.
    """
    found: list[Pending] = []
    for group_index, index, param, number in numbered(optimizer):
        if checks.trains(param):
            where = errors.place(optimizer.param_groups[group_index], group_index, index)
            checks.check_param(param, f"{type(optimizer).__name__}: {where}")
            found.append((group_index, index, param, geometry.local_of(param), number))
    return found


def numbered(optimizer: Owner) -> Iterator[tuple[int, int, torch.Tensor, int]]:
    """Yield (group index, index in the group, parameter, number in ``state_dict`` order)."""
    number = 0
    for group_index, group in enumerate(optimizer.param_groups):
        for index, param in enumerate(group["params"]):
            yield group_index, index, param, number
            number += 1


def gradients(optimizer: Owner) -> list[torch.Tensor]:
    """Return the parts of dense gradients that are here, none of them checked."""
    found = []
    for _, _, param, _ in numbered(optimizer):
        grad = getattr(param, "main_grad", None)
        grad = geometry.local_of(param.grad if grad is None else grad)
        if isinstance(grad, torch.Tensor) and grad.layout is torch.strided and grad.numel():
            found.append(grad)
    return found


def check_states(optimizer: Owner, pending: list[Pending], kinds: list[Kind]) -> None:
    """Refuse a parameter's state where it does not fit the parameter.

    Raises:
        ValueError: a state does not fit; nothing was changed.
    """
    for (group_index, index, param, _, _), kind in zip(pending, kinds, strict=True):
        found = optimizer.state.get(param)
        if found:
            where = errors.place(optimizer.param_groups[group_index], group_index, index)
            with errors.naming(f"{type(optimizer).__name__}: {where}: "):
                state.check(param, found, kind.spec, kind.key.capturable)


def kinds(optimizer: Owner, params: list[tuple[int, torch.Tensor]]) -> list[Kind]:
    """Return the kind of each (group index, parameter), which decides on its state and bucket."""
    known: dict[Hashable, Kind] = {}
    groups = [optimizer.settings(group) for group in optimizer.param_groups]
    found = []
    for group_index, param in params:
        settings = groups[group_index]
        alike = (group_index, geometry.local_of(param).device, param.dtype, param.dim() < 2)
        if settings["state_dtype"] == "int8":
            alike += (packed_state.suits(param), packed_state.suits(param, in_tiles=True))
        kind = known.get(alike)
        if kind is None:
            kind = known[alike] = _kind(optimizer, settings, param)
        found.append(kind)
    return found


def _kind(optimizer: Owner, group: dict[str, Any], param: torch.Tensor) -> Kind:
    device, dtype = geometry.local_of(param).device, param.dtype
    mode = precision.resolve_mode(group["low_precision"], dtype)
    amsgrad = group.get("amsgrad", False)
    key = BucketKey(optimizer._family, device, dtype, mode, amsgrad, group["capturable"])
    spec = optimizer._state_spec(group, param) + state.extra_tensor(mode, dtype)
    by_field = {tensor.field: tensor.key for tensor in spec}
    keys = tuple(by_field.get(field) for field in STATE_FIELDS)
    backend = dispatch.choose(optimizer.backend, FAMILIES[key.op].updates[-1], device, dtype)
    if backend != "eager" and any(one.kind == "records" for one in spec):
        if key.op not in getattr(dispatch.load(backend), "eight_bit_updates", ()):
            backend = "eager"
    return Kind(key, spec, keys, backend)


def sorted_into_buckets(
    optimizer: Owner, pending: list[Pending], kinds: list[Kind]
) -> list[tuple[Bucket, TensorEntry]]:
    """Return each pending parameter's bucket and its entry there. The entries have no rows yet.

    Raises:
        NotImplementedError: a capturable parameter on a GPU has no kernel; nothing was changed.
    """
    buckets: dict[tuple[BucketKey, str], Bucket] = {}
    homes = []
    for (group_index, index, param, grad, number), kind in zip(pending, kinds, strict=True):
        here = map(geometry.local_of, map(optimizer.state[param].get, kind.keys))
        shard = geometry.shard_of(param)
        entry = TensorEntry(geometry.local_of(param), grad, 0, number, shard, *here)
        key, backend = kind.key, kind.backend
        if backend != "eager" and not plan_records.fits(entry, key):
            backend = "eager"
        if backend != "eager" and not plan_records.keeps_blocks(entry):
            backend = "eager"
        if backend != "eager" and not _exchanges(entry, key, backend):
            backend = "eager"
        if key.capturable and backend == "eager" and key.device.type != "cpu":
            where = errors.place(optimizer.param_groups[group_index], group_index, index)
            raise NotImplementedError(
                f"{type(optimizer).__name__}: {where} is {key.dtype} on {key.device}, where only "
                "the eager backend can update it, and that reads step counts back; use "
                "capturable=False for its group (`python -m fused_optim` says what is missing)"
            )
        bucket = buckets.get((key, backend))
        if bucket is None:
            bucket = buckets[key, backend] = Bucket(key, backend=backend)
        bucket.entries.append(entry)
        homes.append((bucket, entry))
    return homes


def _exchanges(entry: TensorEntry, key: BucketKey, backend: str) -> bool:
    """Return whether a backend hands out what a step has to add up over processes, if anything."""
    shard = entry.shard
    if shard is None or not shard.over or FAMILIES[key.op].exchanged is None:
        return True
    module = dispatch.load(backend)
    if not hasattr(module, "keeps_sums") or entry.param.numel() == 0:
        return False  # of an empty part, kernels would not advance the statistics that others have
    rows, cols = shard.split[-2:] if len(shard.split) > 1 else ((), ())
    shape = Shape(*plan_records.matrix_shape(entry.param.shape), sharded=True)
    return module.keeps_sums(shape, bool(rows), bool(cols))


def give_rows(
    optimizer: Owner,
    pending: list[Pending],
    homes: list[tuple[Bucket, TensorEntry]],
    found_inf: torch.Tensor | None,
) -> tuple[dict[int, list[RowKey]], Callable[[], None], Callable[[], None]]:
    """Give the buckets the rows of the coming step, and the entries the indices of their rows.

    Step counts on a device are advanced here, since rows are computed from them.

    Returns:
        The keys of each bucket's rows, by the bucket's id (none for capturable buckets); a
        function that advances the step counts on the host, to be called after the step; and one
        that takes the counts on a device back, for a step that raises.
    """
    steps: list[torch.Tensor] = []
    counted: list[tuple[dict[str, Any], int]] = []
    on_device: dict[int, tuple[Bucket, capture.DeviceRows]] = {}
    row_index: dict[int, dict[RowKey, int]] = {}
    groups = [optimizer.settings(group) for group in optimizer.param_groups]
    for (group_index, index, param, _, _), (bucket, entry) in zip(pending, homes, strict=True):
        group, param_state = groups[group_index], optimizer.state[param]
        variant = optimizer._row_variant(group, index, param)
        if bucket.key.capturable:
            steps.append(param_state["step"])
            _, rows = on_device.setdefault(id(bucket), (bucket, capture.DeviceRows()))
            rows.add(group_index, variant, steps[-1], entry)
            continue
        step = param_state["step"] + 1
        counted.append((param_state, step))
        row_key, known = (group_index, step, variant), row_index.setdefault(id(bucket), {})
        if row_key not in known:
            known[row_key] = len(bucket.rows)
            bucket.rows.append(optimizer._row(group, step, variant))
        entry.row = known[row_key]
    capture.advance(steps, found_inf)
    for bucket, rows in on_device.values():
        rows.fill(bucket, lambda g, s, v: optimizer._row(groups[g], s, v))

    def count() -> None:
        for param_state, step in counted:
            param_state["step"] = step

    def uncount() -> None:
        capture.advance(steps, found_inf, by=-1)

    return {bucket: list(known) for bucket, known in row_index.items()}, count, uncount
