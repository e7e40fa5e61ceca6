"""What every Adafactor here has in common: the name of its update, and its state's dtypes."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from fused_optim import precision
from fused_optim.distributed import clipping
from fused_optim.optimizers.base import FusedOptimizer
from fused_optim.precision.state import StateTensor, moment


class AdafactorFamily(FusedOptimizer):
    """The base of every Adafactor here, which names the update."""

    _family = "adafactor"
    _warned = False

    def _check_members(self, group: dict[str, Any]) -> None:
        super()._check_members(group)
        if not self._warned and any(map(clipping.is_flat_shard, group["params"])):
            self._warned = True
            warnings.warn(
                f"{type(self).__name__}: FullyShardedDataParallel's flat shards are vectors, so "
                "they keep a full second moment (4 bytes per element) and go by the root mean "
                "square of each part; torch.distributed.fsdp.fully_shard keeps matrices, whose "
                "statistics take next to no memory and equal those of an unsharded run",
                UserWarning,
                stacklevel=5,
            )


def statistics_dtype(param: torch.Tensor) -> torch.dtype:
    """Return the dtype of a parameter's statistics of rows and columns."""
    return precision.math_dtype(param.dtype)


def unfactored(key: str, group: dict[str, Any], param: torch.Tensor) -> StateTensor:
    """Return the second moment of a vector: float32, or in 8 bits where it is asked for."""
    packs = group["state_dtype"] == "int8" and param.dtype is not torch.float64
    return moment(key, "exp_avg_sq", torch.uint8 if packs else statistics_dtype(param), param)
