"""Arithmetic of a step's scalars, where the obvious formula loses digits."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from fused_optim.optimizers.scalars import complement_of_power


@pytest.mark.parametrize("exponent", [1, 3, 1000])
@pytest.mark.parametrize("bits", [10, 30, 45])
def test_bias_corrections_keep_their_digits(bits: int, exponent: int) -> None:
    x = Fraction(1, 2**bits)
    expected = float(1 - (1 - x) ** exponent)
    base = 1.0 - float(x)
    on_device = torch.tensor([float(exponent)], dtype=torch.float64)
    for found in (
        complement_of_power(base, exponent),
        complement_of_power(base, on_device),
        complement_of_power(torch.tensor(base, dtype=torch.float64), on_device),
    ):
        assert float(found) == pytest.approx(expected, rel=1e-13, abs=0.0)
