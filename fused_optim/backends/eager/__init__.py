"""The eager backend: the kernel contract in plain PyTorch.

It is the readable specification of every op. It updates CPU tensors, and alone updates float64
parameters. Ops, argument order and equation labels are those of docs/internals/kernel_contract.md.
"""

from .adafactor import (
    adafactor_apply_,
    adafactor_finalise_,
    adafactor_statistics,
    adafactor_update_sums,
    shard_sums,
    shard_update_sum,
)
from .adamw import adamw_
from .gradients import grad_square_sums
from .lion import lion_

__all__ = [
    "adafactor_apply_",
    "adafactor_finalise_",
    "adafactor_statistics",
    "adafactor_update_sums",
    "adamw_",
    "grad_square_sums",
    "lion_",
    "shard_sums",
    "shard_update_sum",
]
