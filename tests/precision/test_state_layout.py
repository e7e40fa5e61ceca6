"""State lies in memory as its parameter does, so that kernels can walk both side by side."""

from __future__ import annotations

import pytest
import torch

import fused_optim


@pytest.mark.parametrize("mode", ["kahan", "split", "master"])
def test_of_a_parameter_in_channels_last(mode: str) -> None:
    values = torch.randn(2, 3, 4, 5).bfloat16()
    param = torch.nn.Parameter(values.contiguous(memory_format=torch.channels_last))
    optimizer = fused_optim.AdamW([param], low_precision=mode)
    optimizer.init_state()
    tensors = [t for t in optimizer.state[param].values() if torch.is_tensor(t)]
    assert len(tensors) == 3
    assert {t.stride() for t in tensors} == {param.stride()}


def test_of_a_transposed_parameter() -> None:
    param = torch.nn.Parameter(torch.randn(6, 4).t())
    optimizer = fused_optim.Adafactor([param], beta1=0.9)
    optimizer.init_state()
    state = optimizer.state[param]
    assert state["exp_avg"].stride() == (1, 4) == param.stride()
    assert state["exp_avg_sq_row"].is_contiguous() and state["exp_avg_sq_col"].is_contiguous()
