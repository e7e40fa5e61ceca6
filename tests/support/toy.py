"""An update that the package lacks, built from what CONTRIBUTING.md's recipe names and no more.

SGD with momentum: the momentum is ``b1 m + g``, and the weight loses ``lr`` times it. No backend
but eager has it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterator
from typing import Any

import pytest
import torch

from fused_optim import ops
from fused_optim.backends import eager
from fused_optim.backends.eager.gradients import preparation, skipped
from fused_optim.optimizers import validation
from fused_optim.optimizers.base import FusedOptimizer
from fused_optim.optimizers.scalars import number
from fused_optim.precision import math_dtype, resolve_state_dtype, rounding
from fused_optim.precision.encoding import Draw, blocks, decode, encode_, store_moment_
from fused_optim.precision.state import StateTensor


@dataclasses.dataclass(frozen=True, slots=True)
class ToyRow:
    """The scalars of a step."""

    grad_mul: float = 1.0
    clip_value: float = math.inf
    b1: float = 0.9
    rate: float = 0.1
    step: int = 1


def toy_(bucket: Any, launch: Any) -> None:
    """Run one step on every tensor of the bucket."""
    if skipped(launch):
        return
    key = bucket.key
    for index, entry in enumerate(bucket.entries):
        row = bucket.rows[entry.row]
        prepare = preparation(row, launch, math_dtype(key.dtype), index)
        draw = Draw(launch.seed, row.step, entry.number, entry.shard)
        tensors = [entry.param, entry.grad, entry.extra, entry.exp_avg]
        for first, (param, grad, extra, exp_avg) in blocks(tensors):
            m = exp_avg.to(math_dtype(key.dtype)) * row.b1 + prepare(grad)
            p = decode(param, extra, key.mode) - row.rate * m
            encode_(param, extra, p, key.mode, draw, first)
            store_moment_(exp_avg, m, rounding.MOMENT_STREAMS[0], draw, first)


FAMILY = ops.Family("toy", ToyRow, ("toy_",), (), rate="rate")


class Toy(FusedOptimizer):
    """SGD with momentum."""

    _family = "toy"

    def __init__(self, params: Any, lr: float = 0.1, momentum: float = 0.9, **common: Any) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum}, **common)

    def _check_group(self, group: dict[str, Any]) -> None:
        validation.check_number(group["lr"], "learning rate", low=0.0)
        validation.check_number(group["momentum"], "momentum", low=0.0, high=1.0, open_high=True)

    def _state_spec(self, group: dict[str, Any], param: torch.Tensor) -> tuple[StateTensor, ...]:
        first, _ = resolve_state_dtype(group["state_dtype"], param.dtype)
        return (StateTensor("momentum_buffer", "exp_avg", first),)

    def _row(self, group: dict[str, Any], step: int | torch.Tensor, variant: Hashable) -> ToyRow:
        sign = -1.0 if group["maximize"] else 1.0
        b1, rate = number(group["momentum"], step), number(group["lr"], step)
        return ToyRow(grad_mul=sign, b1=b1, rate=rate, step=step)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Toy]]:
    """The optimizer, while its op is registered and eager has it."""
    monkeypatch.setitem(ops.FAMILIES, FAMILY.name, FAMILY)
    monkeypatch.setitem(ops.ROWS, ToyRow, FAMILY)
    monkeypatch.setattr(eager, "toy_", toy_, raising=False)
    yield Toy
