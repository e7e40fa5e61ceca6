"""What a backend's ops receive, and what a backend declares so that it can be made ready.

An op takes ``(work, launch)``. Eager's work is a `Bucket`: the tensors themselves and their rows.
That of a backend with kernels is `Tables`: the same on the device, packed by the plan
(`fused_optim.plan.tables`), with the maps and the scratch memory that the backend's ``needs(op,
launch)`` asks for. No op calls up for more. The words are those of docs/kernel_contract.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch


class Row(Protocol):
    """What the rows of all updates have; `fused_optim.ops` has their dataclasses."""

    @property
    def grad_mul(self) -> float:
        """What gradients are multiplied by."""

    @property
    def step(self) -> int:
        """The step count, which numbers the random bits."""


class BucketKey(NamedTuple):
    """What the tensors of one bucket have in common; tensors that differ in it are in two."""

    op: str
    device: torch.device
    dtype: torch.dtype
    mode: str
    amsgrad: bool
    capturable: bool


@dataclasses.dataclass(slots=True)
class TensorEntry:
    """One parameter of a bucket; lives for the length of a step."""

    param: torch.Tensor
    grad: torch.Tensor
    row: int = 0  # index into Bucket.rows
    number: int = 0  # in state_dict order; part of the stochastic rounding counter
    exp_avg: torch.Tensor | None = None
    exp_avg_sq: torch.Tensor | None = None  # Adafactor: row statistics, or unfactored
    max_exp_avg_sq: torch.Tensor | None = None  # Adafactor: column statistics
    extra: torch.Tensor | None = None  # master, remainder or compensation
    rms: torch.Tensor | None = None  # Adafactor: [] of the parameter


STATE_FIELDS = tuple(field.name for field in dataclasses.fields(TensorEntry))[4:]
"""The fields of an entry that hold state, in order."""


@dataclasses.dataclass(slots=True)
class Bucket:
    """Tensors that are updated together, and the scalars that their rows select.

    Attributes:
        key: what they have in common.
        entries: the tensors.
        rows: the scalars; where a backend with kernels updates a capturable bucket, int32
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
    """Parameters of one op's launches that are not per tensor. Tensors are float32 on the device.

    Attributes:
        grad_scale: ``[]`` gradients are divided by it, or None.
        found_inf: ``[]`` where it is not zero the op writes nothing, or None.
        clip: ``[]`` or, with ``clip_per_tensor``, ``[entries]``; multiplies the gradients, or None.
        clip_per_tensor: whether ``clip`` has one coefficient per entry of the bucket.
        seed: of the stochastic rounding, 64 bits.
        sums_wanted: whether anyone reads what ``adafactor_statistics`` returns. Without, a backend
            may do all of a small tensor's step in one op. The same in all ops of a step.
    """

    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None
    clip: torch.Tensor | None = None
    clip_per_tensor: bool = False
    seed: int = 0
    sums_wanted: bool = True


class Shape(NamedTuple):
    """A tensor as a backend counts its work; an elementwise op's is one row.

    ``sharded`` says whether any tensor of its bucket is a shard: between the ops the sums of shards
    are added up over processes, so no op may do them alone.
    """

    batch: int
    rows: int
    cols: int
    sharded: bool = False

    @property
    def numel(self) -> int:
        """The number of elements."""
        return self.batch * self.rows * self.cols


Counts = Callable[[Shape], int]
"""A tensor's number of tiles, or of float32 of scratch. Tensors without elements have none."""


def of_shape(count: Callable[[int, int, int], int]) -> Counts:
    """Return a function of (batch, rows, cols) as one of a `Shape`."""
    return lambda shape: count(shape.batch, shape.rows, shape.cols)


@dataclasses.dataclass(frozen=True, slots=True)
class Needs:
    """What a backend's op reads beside records and rows.

    Attributes:
        maps: for each map that it walks, by name, how many entries a tensor has there.
        scratch: how much scratch memory a tensor takes, or None. Where ops of a step hand something
            on in it, each of them has to give the same function.
    """

    maps: Mapping[str, Counts] = dataclasses.field(default_factory=dict)
    scratch: Counts | None = None


@dataclasses.dataclass(slots=True)
class Tables:
    """Everything that the kernels of one op read and that is not a constant of the backend.

    Attributes:
        key: the bucket's.
        records: int64 ``[tensors, 24]``.
        rows: int32 ``[rows, 16]``, bits of float32.
        maps: for each map of the op's `Needs`, int32 ``[entries, 2]``: (tensor, 0 .. count - 1).
        scratch: float32, at least what the records' ``scratch`` fields span; empty without need.
        grad_scale: float32, one value; 1 where there is none.
        found_inf: float32, one value; 0 where there is none.
        clip: float32, one value or one per tensor; 1 where there is none.
        clip_stride: 1 where ``clip`` has one value per tensor, else 0.
        seed_low: low half of the seed, as the int32 of these bits.
        seed_high: high half of the seed, likewise.
        draws: whether anything is rounded at random.
        some_empty: whether a tensor has no elements, so that no map names it.
    """

    key: BucketKey
    records: torch.Tensor
    rows: torch.Tensor
    maps: Mapping[str, torch.Tensor]
    scratch: torch.Tensor
    grad_scale: torch.Tensor
    found_inf: torch.Tensor
    clip: torch.Tensor
    clip_stride: int
    seed_low: int
    seed_high: int
    draws: bool
    some_empty: bool
