"""What a backend's op receives: a bucket of tensors and the parameters of one launch.

The words are those of docs/kernel_contract.md.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fused_optim.ops import AccumulateRow, AdafactorRow, AdamWRow

if TYPE_CHECKING:
    from fused_optim.plan.tables import Counts, Plan, Tables

Row = AdamWRow | AdafactorRow | AccumulateRow


class BucketKey(NamedTuple):
    """What the tensors of one launch have in common, and nothing else does."""

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
    """The tensors that one launch serves, and the scalars their rows select."""

    key: BucketKey
    entries: list[TensorEntry] = dataclasses.field(default_factory=list)
    rows: list[Row] = dataclasses.field(default_factory=list)
    row_table: torch.Tensor | None = None  # capturable: the rows, packed on the device
    row_index: dict[Any, int] = dataclasses.field(default_factory=dict)
    scratch: Any = None  # what a backend keeps between the ops of one step
    backend: str = "eager"
    kept_plan: Plan | None = None  # tables of an earlier step, to be brought up to date
    plan: Plan | None = None  # tables of this step, once they are packed

    def tables(self, launch: Launch, scratch_size: Counts | None = None) -> Tables:
        """Return what `fused_optim.plan.tables.tables_for` does; backends need not import it."""
        from fused_optim.plan.tables import tables_for

        return tables_for(self, launch, scratch_size)

    def written(self) -> list[torch.Tensor]:
        """Return every tensor that an update of this bucket writes to."""
        return [
            tensor
            for entry in self.entries
            for tensor in (
                *(entry.param, entry.exp_avg, entry.exp_avg_sq, entry.max_exp_avg_sq),
                *(entry.extra, entry.rms),
            )
            if tensor is not None
        ]


@dataclasses.dataclass(slots=True)
class Launch:
    """Parameters of one launch that are not per tensor. Tensors are float32 on the device.

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
