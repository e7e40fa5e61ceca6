"""What a reset of the accumulator forgets: infinities and NaN too."""

from __future__ import annotations

import math

import pytest
import torch

from fused_optim.optimizers.gradient_accumulator import GradientAccumulator


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3.0])
def test_sums_begin_at_zero_again(value: float) -> None:
    accumulator = GradientAccumulator()
    accumulator([torch.full((3,), value), None])
    accumulator.reset()
    assert accumulator.step == 0
    accumulator([torch.ones(3), None])
    total, nothing = accumulator.gradients
    assert total.tolist() == [1.0] * 3 and nothing is None
