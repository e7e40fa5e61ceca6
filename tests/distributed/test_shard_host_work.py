"""What Python does in a steady step of DTensors: nothing that grows with them but loops in C."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from host_steps import CASES, no_kernels, renew_gradients, tensors
from host_work import FEW, MANY, calls_of, operations_of
from processes import needs_gloo
from shards import world_of

pytestmark = needs_gloo


@pytest.fixture
def mesh() -> Iterator[Any]:
    with world_of(2):
        yield torch.distributed.init_device_mesh("cpu", (2,))


def steady_step(name: str, count: int, mesh: Any, new_gradients: bool) -> Callable[[], Any]:
    params = tensors(count, mesh)
    optimizer = CASES[name](params)
    for _ in range(2):
        optimizer.step()
    if new_gradients:
        renew_gradients(params)
    return optimizer.step


@pytest.mark.parametrize("new_gradients", [False, True], ids=["", "new"])
@pytest.mark.parametrize("name", ["AdamW", "torch_compat.AdamW"])
def test_a_steady_step_costs_python_little_more_than_of_plain_tensors(
    name: str, new_gradients: bool, mesh: Any
) -> None:
    with no_kernels():
        few, many = (calls_of(steady_step(name, n, mesh, new_gradients)) for n in (FEW, MANY))
        assert many - few <= 2  # nothing but the odd call of the garbage collector
        spread, plain = (
            operations_of(steady_step(name, MANY, where, new_gradients)) for where in (mesh, None)
        )
        assert spread <= 1.3 * plain
