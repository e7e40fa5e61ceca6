"""Clipping of norms so small that the 1e-6 in torch's coefficient decides."""

from __future__ import annotations

import pytest
import torch
from cases import device_of, each_backend

import fused_optim


@pytest.mark.parametrize("norm", [1e-7, 1e-6, 1e-3])
@each_backend
def test_coefficients_are_torchs(norm: float, backend: str) -> None:
    """The first moment shows the clipped gradient, whatever becomes of it in the update."""
    grad = torch.full((4,), norm / 2, device=device_of(backend))
    param, other = (torch.nn.Parameter(torch.ones_like(grad)) for _ in range(2))
    optimizer = fused_optim.AdamW([param], max_grad_norm=0.8 * norm, backend=backend)
    param.grad, other.grad = grad.clone(), grad.clone()
    optimizer.step()
    torch.nn.utils.clip_grad_norm_([other], 0.8 * norm)
    found = optimizer.state[param]["exp_avg"]
    torch.testing.assert_close(found, 0.1 * other.grad, rtol=1e-5, atol=0.0)
    assert torch.equal(param.grad, grad)
