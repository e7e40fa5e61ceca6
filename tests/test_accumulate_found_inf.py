"""Accumulation with what no accumulator gives it as yet, but the contract lets an op be given."""

from __future__ import annotations

import pytest
import torch
from cases import BACKENDS, device_of

from fused_optim.backends import dispatch
from fused_optim.backends.interface import Bucket, BucketKey, Launch, TensorEntry
from fused_optim.ops import AccumulateRow

kernels = pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "eager"], indirect=True)


@pytest.mark.parametrize("found_inf", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@kernels
def test_an_overflow_adds_nothing(backend: str, dtype: torch.dtype, found_inf: float) -> None:
    device = device_of(backend)
    key = BucketKey("accumulate", device, dtype, "nearest", False, False)
    buffer, grad = (torch.randn(13, device=device).to(dtype) for _ in range(2))
    bucket = Bucket(key, [TensorEntry(buffer.clone(), grad)], [AccumulateRow(grad_mul=-1.0)])
    scale = torch.tensor(4.0, device=device)
    launch = Launch(grad_scale=scale, found_inf=torch.tensor(found_inf, device=device))
    dispatch.load(backend).accumulate_(bucket, launch)
    added = (buffer.float() - grad.float() / 4).to(dtype)
    assert torch.equal(bucket.entries[0].param, buffer if found_inf else added)
