"""The types that a backend's ops receive, and those in which it declares what the ops need.

An op takes ``(work, launch)``. Eager's work is a `Bucket`: the tensors themselves and their rows.
A backend with kernels receives `Tables`: the bucket, packed onto the device by the plan
(`fused_optim.plan.tables`), with the maps and the scratch memory that the backend's ``needs(op,
launch)`` asks for. No op asks the plan for more. The words are those of
docs/internals/kernel_contract.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from fused_optim.distributed.geometry import Shard


class Row(Protocol):
    """The scalars of a step: the fields that all rows of `fused_optim.ops` have."""

    @property
    def grad_mul(self) -> float:
        """The factor of the gradients: 1, or -1 to maximise."""

    @property
    def step(self) -> int:
        """The step count, which numbers the random bits."""


class BucketKey(NamedTuple):
    """The properties that all tensors of a bucket share. A tensor with others is in another one."""

    op: str
    device: torch.device
    dtype: torch.dtype
    mode: str
    amsgrad: bool
    capturable: bool


@dataclasses.dataclass(slots=True)
class TensorEntry:
    """One parameter of a bucket, with its gradient and state. An entry lives as long as a step."""

    param: torch.Tensor
    grad: torch.Tensor
    row: int = 0  # index into Bucket.rows
    number: int = 0  # in state_dict order; stochastic rounding counts by it
    shard: Shard | None = None  # where the tensors lie in the whole, if they are a DTensor's part
    exp_avg: torch.Tensor | None = None
    exp_avg_sq: torch.Tensor | None = None  # Adafactor: row statistics, or unfactored
    max_exp_avg_sq: torch.Tensor | None = None  # Adafactor: column statistics
    extra: torch.Tensor | None = None  # master, remainder or compensation
    rms: torch.Tensor | None = None  # Adafactor: [] of the parameter


STATE_FIELDS = tuple(field.name for field in dataclasses.fields(TensorEntry))[5:]
"""The fields of an entry that hold state, in order."""


@dataclasses.dataclass(slots=True)
class Bucket:
    """Tensors that are updated together, and the scalars that their rows select.

    Attributes:
        key: the properties that they share.
        entries: the tensors.
        rows: the scalars. A capturable bucket of a backend with kernels has them as int32
            ``[rows, 16]`` on the device.
        backend: the name of the backend that updates them.
        scratch: what the eager backend keeps between the ops of one step.
    """

    key: BucketKey
    entries: list[TensorEntry] = dataclasses.field(default_factory=list)
    rows: list[Row] | torch.Tensor = dataclasses.field(default_factory=list)
    backend: str = "eager"
    scratch: Any = None

    def written(self) -> list[torch.Tensor]:
        """Return every tensor that an update of this bucket writes to."""
        fields = ("param", *STATE_FIELDS)
        tensors = [getattr(entry, field) for entry in self.entries for field in fields]
        return [tensor for tensor in tensors if tensor is not None]


@dataclasses.dataclass(slots=True)
class Launch:
    """The arguments of an op that hold for the whole bucket. Tensors are float32 on the device.

    Attributes:
        grad_scale: ``[]``, which gradients are divided by, or None.
        found_inf: ``[]``, or None. The op writes nothing where it is not zero.
        clip: the factor of the gradients, ``[]`` or, with ``clip_per_tensor``, ``[entries]``; or
            None.
        clip_per_tensor: whether ``clip`` has one coefficient per entry of the bucket.
        seed: of the stochastic rounding, 64 bits.
        sums_wanted: whether anyone reads what ``adafactor_statistics`` returns. If nobody does, a
            backend may make a small tensor's whole step in one op. All ops of a step are given the
            same value.
    """

    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None
    clip: torch.Tensor | None = None
    clip_per_tensor: bool = False
    seed: int = 0
    sums_wanted: bool = True


class Shape(NamedTuple):
    """The shape by which a backend counts a tensor's work: to an elementwise op, one matrix row.

    ``sharded`` says whether any tensor of the bucket is a shard. The sums of shards are added up
    over processes between the ops, so no op may make a whole step of such a bucket. ``cut`` is what
    the backend chose for the bucket (`Needs`).
    """

    batch: int
    rows: int
    cols: int
    sharded: bool = False
    cut: int = 0

    @property
    def numel(self) -> int:
        """The number of elements."""
        return self.batch * self.rows * self.cols


Counts = Callable[[Shape], int]
"""Counts a tensor's tiles, or its float32 words of scratch. It isn't asked of empty tensors."""

Sizes = Callable[[Shape], torch.Tensor]
"""Returns the elements of each of a tensor's tiles, int64 on the CPU."""


def of_shape(count: Callable[[int, int, int], int]) -> Counts:
    """Turn a function of (batch, rows, cols) into a function of a `Shape`."""
    return lambda shape: count(shape.batch, shape.rows, shape.cols)


@dataclasses.dataclass(frozen=True, slots=True)
class Needs:
    """What a backend's op reads, apart from records and rows.

    Attributes:
        maps: for each map that it walks, by name, how many entries a tensor has there.
        scratch: how much scratch memory a tensor takes, or None. Ops of a step that hand results on
            in scratch memory have to give the same function.
        cut: chooses a number for the whole bucket from all its shapes, or None. Both counts find it
            in ``Shape.cut``, and kernels in the records.
        shapes: returns what kernels read of a tensor's shape besides its record, as bytes: for each
            shape equally many, a multiple of 8. None if they read nothing.
        sizes: for maps that begin with the largest entries, by name, the elements of each entry of
            a tensor. Blocks that take entries in turn end with small ones, at about the same time.
    """

    maps: Mapping[str, Counts] = dataclasses.field(default_factory=dict)
    scratch: Counts | None = None
    cut: Callable[[Sequence[Shape], BucketKey], int] | None = None
    sizes: Mapping[str, Sizes] = dataclasses.field(default_factory=dict)
    shapes: Callable[[Shape], bytes] | None = None


@dataclasses.dataclass(slots=True)
class Tables:
    """Everything that the kernels of one op read, but for constants of the backend.

    Attributes:
        key: the bucket's.
        records: int64 ``[tensors, 24]``.
        rows: int32 ``[rows, 16]``, bits of float32.
        shapes: int64 ``[tensors, words]``: what the op's `Needs` says of each tensor's shape.
        maps: for each map of the op's `Needs`, int32 ``[entries, 2]``: (tensor, 0 .. count - 1).
        scratch: float32, at least what the records' ``scratch`` fields span; empty without need.
        grad_scale: float32, one value; 1 where there is none.
        found_inf: float32, one value; 0 where there is none.
        clip: float32, one value or one per tensor; 1 where there is none.
        clip_stride: 1 where ``clip`` has one value per tensor, else 0.
        seed_low: low half of the seed, as the int32 of these bits.
        seed_high: high half of the seed, likewise.
        draws: whether anything is rounded stochastically.
        packed: whether a tensor's moments are in 8 bits.
        some_empty: whether a tensor has no elements, so that no map names it.
    """

    key: BucketKey
    records: torch.Tensor
    rows: torch.Tensor
    shapes: torch.Tensor
    maps: Mapping[str, torch.Tensor]
    scratch: torch.Tensor
    grad_scale: torch.Tensor
    found_inf: torch.Tensor
    clip: torch.Tensor
    clip_stride: int
    seed_low: int
    seed_high: int
    draws: bool
    packed: bool
    some_empty: bool
