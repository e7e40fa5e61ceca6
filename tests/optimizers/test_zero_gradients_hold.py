"""Adafactor with relative steps, whose group has a learning rate that a schedule reports there."""

from __future__ import annotations

import pytest
import torch
from cases import device_of, each_backend

import fused_optim


@pytest.mark.parametrize("shape", [(6,), (3, 4), (2, 3, 2)], ids=str)
@each_backend
def test_a_zero_gradient_holds_at_a_rate_of_zero_alone(
    shape: tuple[int, ...], backend: str
) -> None:
    """With a rate of 0 it is a step that makes state; with any other, weight decay goes on."""
    for lr, moves in ((0.0, False), (0.3, True)):
        param = torch.nn.Parameter(torch.ones(shape, device=device_of(backend)))
        optimizer = fused_optim.Adafactor([param], weight_decay=0.1, backend=backend)
        optimizer.param_groups[0]["lr"] = lr
        param.grad = torch.zeros_like(param)
        optimizer.step()
        # rho is 0.01 at the first step, times the root mean square, which is 1.
        expected = torch.full_like(param, 1.0 - 0.1 * 0.01 if moves else 1.0)
        torch.testing.assert_close(param.detach(), expected, rtol=1e-6, atol=0.0)
