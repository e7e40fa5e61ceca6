"""The steady state: a step whose tensors are those of the step before.

Walking a thousand parameters in Python costs milliseconds. So a step leaves a memory of its tensors
behind: their identities and addresses, and at most weak references. The next step compares its
tensors with that memory, by calls that loop in C. Where nothing differs, kernels need new gradient
addresses and rows alone, and eager new entries. Any difference makes the step collect its tensors
anew, which also finds the words for an error.
"""

from __future__ import annotations

import dataclasses
import weakref
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import compress, repeat
from operator import attrgetter, is_
from typing import Any

import torch

from fused_optim.backends.interface import Bucket, BucketKey, TensorEntry
from fused_optim.distributed import geometry
from fused_optim.plan.collect import Kind, Pending, RowKey
from fused_optim.plan.owner import Owner
from fused_optim.plan.tables import Plan
from fused_optim.plan.work import Work
from fused_optim.precision import checks

_local = attrgetter(geometry.LOCAL)
_spec = attrgetter("_spec")
_place = attrgetter("mesh", "placements")
_data_ptr = torch.Tensor.data_ptr
_is_contiguous = torch.Tensor.is_contiguous
_stride = torch.Tensor.stride
_is_neg = torch.Tensor.is_neg
_offset = torch.Tensor.storage_offset
_dtype = attrgetter("dtype")
_device = attrgetter("device")
_shape = attrgetter("shape")


def increment_versions(tensors: list[torch.Tensor]) -> None:
    """Tell autograd that tensors were written to. A kernel has addresses alone, and can't."""
    try:
        torch.autograd.graph.increment_version(tensors)
    except (
        TypeError,
        RuntimeError,
    ):  # an older torch, which takes one; inference tensors have none
        for tensor in tensors:
            if not tensor.is_inference():
                torch.autograd.graph.increment_version(tensor)


@dataclasses.dataclass(slots=True)
class _KnownGroup:
    structure: Hashable
    params: list[int]  # their ids


@dataclasses.dataclass(slots=True)
class _KnownBucket:
    key: BucketKey
    plan: Plan | None
    members: list[int]  # indices into the updated parameters
    rows: list[RowKey]
    entries: list[tuple]  # eager: (row, number, shard, keys of the state) of each member


class Steady:
    """What the next step compares itself with: the last one's tensors, groups and step counts."""

    def __init__(
        self,
        optimizer: Owner,
        pending: list[Pending],
        kinds: list[Kind],
        works: list[Work],
        row_keys: dict[int, list[RowKey]],
    ) -> None:
        users = [param for _, _, param, _, _ in pending]
        # Which parameters are DTensors: of these and of their state, the parts are compared.
        self._spread = [geometry.is_dtensor(param) for param in users]
        self._mixed = len(set(self._spread)) > 1
        self._specs = list(map(_spec, compress(users, self._spread)))
        self._places = list(map(_place, self._specs))
        params = self._parts(users)
        grads = [grad for _, _, _, grad, _ in pending]
        number_of = {id(param): i for i, param in enumerate(params)}
        self._groups = [
            _KnownGroup(
                optimizer._structure(optimizer.settings(group)), list(map(id, group["params"]))
            )
            for group in optimizer.param_groups
        ]
        ids = set(map(id, users))
        every = [i for known in self._groups for i in known.params]
        self._selected = None if len(every) == len(params) else [i in ids for i in every]
        self._params = list(map(_data_ptr, params))
        self._param_dtypes = list(map(_dtype, params))
        self._grads = list(map(_data_ptr, grads))
        self._grad_dtypes = list(map(_dtype, grads))
        self._shapes = list(map(_shape, grads))
        self._freed = self._grads.count(0)
        self._param_strides, self._strides = map(_strides_of, (params, grads))
        states = [optimizer.state[param] for param in users]
        self._steps = [state["step"] for state in states]
        self._columns = _columns_of(states)
        self._buckets = [
            _KnownBucket(
                work.key,
                work.plan,
                members := [number_of[id(entry.param)] for entry in work.bucket.entries],
                row_keys[id(work.bucket)],
                [
                    (entry.row, entry.number, entry.shard, kinds[i].keys)
                    for i, entry in zip(members, work.bucket.entries, strict=True)
                    if work.plan is None
                ],
            )
            for work in works
        ]

    @staticmethod
    def holds_for(pending: list[Pending], kinds: list[Kind]) -> bool:
        """Return whether a step may be remembered: tensors are of known kinds, steps numbers."""
        plain = (torch.nn.Parameter, torch.Tensor)
        return all(
            type(param) in plain or geometry.is_dtensor(param) for _, _, param, _, _ in pending
        ) and not any(kind.key.capturable for kind in kinds)

    def _parts(self, tensors: list) -> list:
        """Return what is here of tensors, those of the parameters that are DTensors among them."""
        if not self._specs:
            return tensors
        if not self._mixed:
            return list(map(_local, tensors))
        return [_local(t) if spread else t for t, spread in zip(tensors, self._spread, strict=True)]

    def step(
        self,
        optimizer: Owner,
        settings: Sequence[dict[str, Any]],
        run: Callable[[list[Work]], None],
    ) -> bool:
        """Make a step and return True; or return False, and change nothing, if anything differs.

        Args:
            optimizer: whose step it is.
            settings: of its groups, checked.
            run: runs the ops of a step.
        """
        try:
            with torch._C.DisableTorchFunctionSubclass():  # else DTensors' attributes take thrice
                found = self._unchanged(optimizer, settings)
        except (TypeError, RuntimeError, AttributeError, KeyError):
            return False  # a gradient or a state is missing, sparse or no tensor
        if found is None:
            return False
        params, grads, states, written = found
        optimizer._begin()
        run([self._work(optimizer, known, params, grads, states) for known in self._buckets])
        self._steps = [step + 1 for step in self._steps]
        for known in self._buckets:
            known.rows = _next(known.rows)
        for state, step in zip(states, self._steps, strict=True):
            state["step"] = step
        increment_versions(written)
        return True

    @staticmethod
    def _work(
        optimizer: Owner, known: _KnownBucket, params: list, grads: list, states: list[dict]
    ) -> Work:
        groups = [optimizer.settings(group) for group in optimizer.param_groups]
        rows = [
            optimizer._row(groups[group], step, variant)
            for group, step, variant in _next(known.rows)
        ]
        if known.plan is not None:
            known.plan.set_rows(rows)
            return Work(known.key, None, known.plan)
        entries = [
            TensorEntry(params[i], grads[i], row, number, shard, *_state_of(states[i], keys, shard))
            for i, (row, number, shard, keys) in zip(known.members, known.entries, strict=True)
        ]
        return Work(known.key, Bucket(known.key, entries, rows), None)

    def _unchanged(
        self, optimizer: Owner, settings: Sequence[dict[str, Any]]
    ) -> tuple[list, list, list, list] | None:
        """Return parameters, gradients, states and the tensors that kernels write to, or None."""
        params = self._found_params(optimizer, settings)
        if params is None:
            return None
        grads = [param.grad for param in params]
        if any(map(hasattr, params, repeat("main_grad"))):
            grads = list(map(getattr, params, repeat("main_grad"), grads))
            grads = [p.grad if g is None else g for p, g in zip(params, grads, strict=True)]
            for fact in (_shape, _device):
                if list(map(fact, grads)) != list(map(fact, params)):
                    return None
        states = _states_of(optimizer, params)
        written: list[torch.Tensor] = []
        if self._specs:
            if not self._lie_as_before(compress(grads, self._spread) if self._mixed else grads):
                return None  # to be redistributed
            written = params  # nobody else tells autograd of DTensors, whose parts are written to
            params, grads = self._parts(params), self._parts(grads)
        if not (
            list(map(_data_ptr, params)) == self._params
            # A gradient's dtype does not tell: p.grad_dtype and `p.data = ...` let the two differ.
            and list(map(_dtype, params)) == self._param_dtypes
            and list(map(_shape, params)) == self._shapes
            and not any(map(_is_neg, grads))
            and list(map(_dtype, grads)) == self._grad_dtypes
            and list(map(_shape, grads)) == self._shapes
            and _have_strides(params, self._param_strides)
            and _have_strides(grads, self._strides)
            and [state["step"] for state in states] == self._steps
        ):
            return None
        parts = params
        for column in self._columns:
            tensors = column.same_in(states)
            if tensors is None:
                return None
            parts = parts + tensors
        addresses = list(map(_data_ptr, grads))
        if addresses.count(0) != self._freed:
            return None  # the memory of a gradient was freed
        if addresses != self._grads and any(
            map(checks.memory_missing, compress(grads, map(_offset, grads)))
        ):
            return None  # the same of a view, whose address is then its offset
        self._take_gradients(addresses)
        if not all(known.plan is None for known in self._buckets):
            written = written + parts  # where torch's own operators did not count what they wrote
        return params, grads, states, written

    def _lie_as_before(self, grads: Iterable[torch.Tensor]) -> bool:
        """Return whether gradients that are DTensors have the placements of their parameters."""
        specs = list(map(_spec, grads))
        if not all(map(is_, specs, self._specs)):  # other objects may say the same
            if list(map(_place, specs)) != self._places:
                return False
            self._specs = specs
        return True

    def _found_params(
        self, optimizer: Owner, settings: Sequence[dict[str, Any]]
    ) -> list[torch.Tensor] | None:
        """Return the parameters that the last step updated, or None if the groups differ."""
        groups = optimizer.param_groups
        if len(groups) != len(self._groups):
            return None
        params: list[torch.Tensor] = []
        for group, known in zip(settings, self._groups, strict=True):
            here = group["params"]
            if (
                list(map(id, here)) != known.params
                or optimizer._structure(group) != known.structure
            ):
                return None
            params += here
        if self._selected is None:
            return params
        has_grad = [_has_gradient(param) for param in params]
        return list(compress(params, self._selected)) if has_grad == self._selected else None

    def _take_gradients(self, addresses: list[int]) -> None:
        if addresses == self._grads:
            return
        self._grads = addresses
        for known in self._buckets:
            if known.plan is not None:
                mine = array("q", [addresses[i] for i in known.members])
                known.plan.set_gradients(torch.frombuffer(mine, dtype=torch.int64))


def _next(rows: list[RowKey]) -> list[RowKey]:
    return [(group, step + 1, variant) for group, step, variant in rows]


def _strides_of(tensors: Sequence[torch.Tensor]) -> list[tuple[int, ...]] | None:
    """Return the tensors' strides, or None where all are contiguous, which is quick to see."""
    return None if all(map(_is_contiguous, tensors)) else list(map(_stride, tensors))


def _have_strides(tensors: Sequence[torch.Tensor], strides: list[tuple[int, ...]] | None) -> bool:
    if strides is None:
        return all(map(_is_contiguous, tensors))
    return list(map(_stride, tensors)) == strides


def _has_gradient(param: torch.Tensor) -> bool:
    return param.grad is not None or getattr(param, "main_grad", None) is not None


def _states_of(optimizer: Owner, params: list[torch.Tensor]) -> list[dict | None]:
    """Return the parameters' states: in order where the dict has that order, else by lookup."""
    state = optimizer.state
    if len(state) == len(params) and all(map(is_, state, params)):
        return list(state.values())
    return list(map(state.get, params))


class _Column:
    """The tensors that states hold under one key, known by their ids and addresses.

    No other tensor has a tensor's id while it lives, and weak references tell when one dies. The
    memory of a living tensor may move (``tensor.data = ...``, ``set_``, a resized storage), so
    addresses are compared too.
    """

    __slots__ = ("_addresses", "_dead", "_ids", "_key", "_mixed", "_refs", "_spread", "_there")

    def __init__(self, key: str, values: list[Any], there: list[bool]) -> None:
        tensors = list(compress(values, there))
        self._key = key
        self._there = None if all(there) else there  # which parameters have such a tensor
        self._ids = list(map(id, tensors))
        spread = list(map(geometry.is_dtensor, tensors))
        self._spread = spread if any(spread) else None  # which of them are DTensors
        self._mixed = not all(spread)
        self._addresses = list(map(_data_ptr, map(geometry.local_of, tensors)))
        self._dead: list[weakref.ref] = []
        self._refs = [weakref.ref(tensor, self._dead.append) for tensor in tensors]

    def same_in(self, states: list[dict]) -> list[torch.Tensor] | None:
        """Return the tensors that states hold now, or None if any of them is another one."""
        key = self._key
        having = states if self._there is None else compress(states, self._there)
        tensors = parts = [state[key] for state in having]
        if list(map(id, tensors)) != self._ids:
            return None
        if self._spread is not None and self._mixed:
            parts = [_local(t) if d else t for t, d in zip(tensors, self._spread, strict=True)]
        elif self._spread is not None:
            parts = list(map(_local, tensors))
        same = list(map(_data_ptr, parts)) == self._addresses and not self._dead
        return parts if same else None


def _state_of(state: dict, keys: tuple, shard: Any) -> Iterator[torch.Tensor | None]:
    """Return the tensors of a parameter's state, or what is here of them, by keys."""
    tensors = map(state.get, keys)
    return tensors if shard is None else map(geometry.local_of, tensors)


def _columns_of(states: list[dict]) -> list[_Column]:
    columns = []
    for key in dict.fromkeys(key for state in states for key in state):
        values = [state.get(key) for state in states]
        there = [isinstance(value, torch.Tensor) for value in values]
        if any(there):
            columns.append(_Column(key, values, there))
    return columns
