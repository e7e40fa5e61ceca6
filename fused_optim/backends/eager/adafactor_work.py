"""One tensor on its way through the stages of an Adafactor step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch

from fused_optim.precision.encoding import Draw
from fused_optim.precision.modes import is_packed

from .gradients import preparation
from .tiles import Tile, as_matrices, tiles_of

Update = tuple[torch.Tensor, "torch.Tensor | float"]


@dataclasses.dataclass(slots=True)
class Work:
    """One tensor on its way through the stages. Tensors are ``[batch, rows, cols]``."""

    index: int  # in its bucket
    entry: object
    row: object
    mode: str
    draw: Draw
    dtype: torch.dtype  # of the math
    param: torch.Tensor
    grad: torch.Tensor
    exp_avg: torch.Tensor | None
    extra: torch.Tensor | None
    tiles: Sequence[tuple[int, Tile]]
    prepare: Callable[[torch.Tensor], torch.Tensor]  # clipped from F3 on
    row_sum: torch.Tensor | None = None  # [batch, rows] float64, where factored
    col_sum: torch.Tensor | None = None  # [batch, cols]
    total: torch.Tensor | None = None  # [batch] sums of row means; with `old`, of a part alone
    old: torch.Tensor | None = None  # [batch] sums of the row statistics before the step
    p_sum: torch.Tensor | None = None  # [] float64, as is u_sum
    u_sum: torch.Tensor | None = None
    factors: tuple[torch.Tensor, ...] = ()  # r and c of F4, or V
    update: Update | None = None  # of F6, where F6 kept it
    alpha: torch.Tensor | None = None  # [] of F5; F7 makes it 0 where the tensor must not move
    scale: torch.Tensor | None = None  # [] of F7

    @property
    def split(self) -> bool:
        """Whether other processes have parts of the tensor, and sums of their own to add."""
        return self.entry.shard is not None and bool(self.entry.shard.over)

    @property
    def whole(self) -> tuple[int, int, int]:
        """Elements, rows and columns of the whole tensor, which means are taken over."""
        if not self.split:
            return self.grad.numel(), *self.grad.shape[1:]
        shape = self.entry.shard.whole
        return math.prod(shape), *(shape[-2:] if len(shape) > 1 else (1, *shape))

    @property
    def factored(self) -> bool:
        """Whether the second moment is factored, so that F4 applies."""
        return self.entry.max_exp_avg_sq is not None


def begin(bucket, launch, index: int) -> Work:
    """Return the work on one entry of a bucket."""
    entry = bucket.entries[index]
    row, ndim = bucket.rows[entry.row], entry.grad.dim()
    dtype = torch.float64 if bucket.key.dtype is torch.float64 else torch.float32
    draw = Draw(launch.seed, row.step, entry.number, entry.shard)
    moment = None if entry.exp_avg is None or is_packed(entry.exp_avg) else entry.exp_avg
    tensors = [as_matrices(t, ndim) for t in (entry.param, entry.grad, moment, entry.extra)]
    if moment is not entry.exp_avg:
        tensors[2] = entry.exp_avg  # records, which the tiles begin with blocks of
    prepare = preparation(row, launch, dtype, None)
    return Work(
        index, entry, row, bucket.key.mode, draw, dtype, *tensors, tiles_of(tensors[1]), prepare
    )


def zeros(work: Work, *shape: int) -> torch.Tensor:
    """Return new sums for a tensor, float64."""
    return torch.zeros(shape, dtype=torch.float64, device=work.grad.device)
