"""A NaN in one element of a parameter, whose root mean square scales the update, or a gradient."""

from __future__ import annotations

import math

import pytest
import torch
from cases import device_of, each_backend

import fused_optim
from fused_optim import torch_compat


@pytest.mark.parametrize("shape", [(4, 4), (16,), (2, 2, 4)], ids=str)
@pytest.mark.parametrize("make", [fused_optim.Adafactor, torch_compat.Adafactor])
@each_backend
def test_the_others_go_on(make: type, shape: tuple[int, ...], backend: str) -> None:
    """No root mean square can be had, so the floor of the step size takes its place."""
    start = torch.linspace(1.0, 2.0, 16).view(shape)
    results = []
    for scale in (1.0, 1e-6):  # the latter far below the floor, which is 1e-3
        param = torch.nn.Parameter((scale * start).to(device_of(backend)))
        if scale == 1.0:
            param.data.view(-1)[5] = math.nan
        optimizer = make([param], backend=backend)
        param.grad = torch.ones_like(param)
        before = param.detach().clone()
        optimizer.step()
        results.append((before - param.detach()).flatten().cpu())
    others = torch.arange(16) != 5
    assert results[0].isnan().tolist() == (~others).tolist()
    torch.testing.assert_close(results[0][others], results[1][others], rtol=0.02, atol=0.0)
    assert (results[0][others] > 0).all()


@pytest.mark.parametrize(
    ("make", "shape", "reached"),
    [
        (fused_optim.Adafactor, (16,), 16),
        (fused_optim.Adafactor, (4, 4), 16),
        (torch_compat.Adafactor, (16,), 1),
        (torch_compat.Adafactor, (4, 4), 16),
    ],
)
@each_backend
def test_a_gradients_reaches_what_it_scales(
    make: type, shape: tuple[int, ...], reached: int, backend: str
) -> None:
    """A matrix's statistics are divided by their mean, and updates by their root mean square.

    In place of a root mean square that is NaN torch takes 1.
    """
    param = torch.nn.Parameter(torch.ones(shape, device=device_of(backend)))
    optimizer = make([param], backend=backend)
    param.grad = torch.ones_like(param)
    param.grad.view(-1)[5] = math.nan
    optimizer.step()
    assert param.detach().isnan().sum() == reached
    assert param.detach().view(-1)[5].isnan()
