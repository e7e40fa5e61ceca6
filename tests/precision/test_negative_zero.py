"""Parameters of -0: what is kept beside them is 0, and no NaN."""

from __future__ import annotations

import pytest
import torch
from cases import device_of, each_backend

import fused_optim

ZEROS = (-0.0, 0.0, 1.0, -1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [fused_optim.AdamW, fused_optim.Adafactor])
@each_backend
def test_the_compensation_of_nothing_lost_is_zero(
    make: type, dtype: torch.dtype, backend: str
) -> None:
    param = torch.nn.Parameter(torch.tensor(ZEROS, dtype=dtype, device=device_of(backend)))
    optimizer = make([param], low_precision="kahan", backend=backend)
    before = param.detach().clone()
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert torch.equal(param.detach().view(torch.int16), before.view(torch.int16))
    assert optimizer.state[param]["compensation"].view(torch.int16).tolist() == [0] * 4
