"""Adafactor's clipping bound, which transformers and torch call by other names and bounds."""

from __future__ import annotations

import pytest
import torch

import fused_optim
from fused_optim import torch_compat


def stepped(cls: type, **options) -> torch.optim.Optimizer:
    param = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = cls([param], **options)
    param.grad = torch.ones_like(param)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(("threshold", "d"), [(0.3, 1.0), (1.0, 1.0), (2.5, 2.5)])
def test_transformers_threshold_becomes_torchs_d(threshold: float, d: float) -> None:
    """Torch's is at least 1, and neither one's eps means the other's."""
    ours = stepped(torch_compat.Adafactor, eps=(1e-5, 1e-2))
    ours.load_state_dict(stepped(fused_optim.Adafactor, clip_threshold=threshold).state_dict())
    group = ours.param_groups[0]
    assert (group["d"], group["eps"]) == (d, (1e-5, 1e-2))


@pytest.mark.parametrize("cls", [torch.optim.Adafactor, torch_compat.Adafactor])
def test_torchs_d_becomes_the_threshold(cls: type) -> None:
    ours = stepped(fused_optim.Adafactor, lr=0.1, relative_step=False, eps=(1e-20, 1e-2))
    ours.load_state_dict(stepped(cls, d=2.5).state_dict())
    group = ours.param_groups[0]
    assert (group["clip_threshold"], group["eps"]) == (2.5, (1e-20, 1e-2))
