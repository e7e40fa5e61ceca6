"""What a backend's op receives: a bucket of tensors and the parameters of one launch.

The words are those of docs/kernel_contract.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from fused_optim.tables import AccumulateRow, AdafactorRow, AdamWRow

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


@dataclasses.dataclass(slots=True)
class Bucket:
    """The tensors that one launch serves, and the scalars their rows select."""

    key: BucketKey
    entries: list[TensorEntry] = dataclasses.field(default_factory=list)
    rows: list[Row] = dataclasses.field(default_factory=list)
    row_index: dict[Any, int] = dataclasses.field(default_factory=dict)
    scratch: Any = None  # what a backend keeps between the ops of one step


@dataclasses.dataclass(slots=True)
class Launch:
    """Parameters of one launch that are not per tensor. Tensors are float32 on the device.

    Attributes:
        grad_scale: ``[]`` gradients are divided by it, or None.
        found_inf: ``[]`` where it is not zero the op writes nothing, or None.
        clip: ``[]`` or, with ``clip_per_tensor``, ``[entries]``; multiplies the gradients, or None.
        clip_per_tensor: whether ``clip`` has one coefficient per entry of the bucket.
        seed: of the stochastic rounding, 64 bits.
    """

    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None
    clip: torch.Tensor | None = None
    clip_per_tensor: bool = False
    seed: int = 0
