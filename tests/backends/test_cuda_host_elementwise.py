"""What the elementwise CUDA kernels move and launch, counted on the CPU, and what they refuse."""

from __future__ import annotations

import host_module
import pytest
import torch
from entries import bucket_of, entry_of, key_of
from reference_fp32 import UPDATES

from fused_optim.backends.interface import Launch
from fused_optim.ops import FAMILIES

# (update, dtype, mode, state dtype): bytes per parameter, README's figures.
TRAFFIC = {
    ("adamw", torch.float32, "none", torch.float32): 28,
    ("adamw", torch.bfloat16, "nearest", torch.float32): 22,
    ("adamw", torch.bfloat16, "split", torch.float32): 26,
    ("adamw", torch.bfloat16, "split", torch.bfloat16): 18,
    ("adamw", torch.bfloat16, "stochastic", torch.bfloat16): 14,
    ("lion", torch.float32, "none", torch.float32): 20,
    ("lion", torch.bfloat16, "split", torch.float32): 18,
    ("lion", torch.bfloat16, "stochastic", torch.bfloat16): 10,
}


@pytest.mark.parametrize("variant", TRAFFIC)
def test_traffic_and_launches(variant) -> None:
    name, dtype, mode, state_dtype = variant
    key = key_of(dtype, mode, op=name)
    entries = [
        entry_of(key, (size,), grad=dtype, state=state_dtype, row=number)
        for number, size in enumerate((64, 8192, 3 * 8192 + 8))
    ]
    extension, bucket = host_module.backend()._C, bucket_of(key, entries)
    extension.take_counters()
    getattr(host_module.kernels(), FAMILIES[name].updates[0])(bucket, Launch())
    counted = extension.take_counters()
    elements = sum(entry.param.numel() for entry in entries)
    assert counted["launches"] == 1
    assert counted["bytes_loaded"] + counted["bytes_stored"] == TRAFFIC[variant] * elements


def test_moments_in_8_bits_take_part_in_the_launch_of_all_others() -> None:
    key = key_of(torch.bfloat16, "stochastic")
    entries = [
        entry_of(key, (3 * 8192 + 8,), grad=torch.bfloat16, state=state, row=row)
        for row, state in enumerate(("int8", torch.float32, "int8"))
    ]
    extension = host_module.backend()._C
    extension.take_counters()
    host_module.kernels().adamw_(bucket_of(key, entries), Launch())
    assert extension.take_counters()["launches"] == 1


@pytest.mark.parametrize("name", UPDATES)
def test_error_names_the_op(name: str) -> None:
    key, (op,) = key_of(torch.float32, "none", op=name), FAMILIES[name].updates
    bucket = bucket_of(key._replace(mode="split"), [entry_of(key, (8,))])
    with pytest.raises(ValueError, match=f"{op}: no kernel for dtype 0 in mode 4"):
        getattr(host_module.kernels(), op)(bucket, Launch())
