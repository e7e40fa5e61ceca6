"""What Python does in a steady step: times vary, the number of operations does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from host_steps import CASES, no_kernels, renew_gradients, tensors
from host_work import FEW, MANY, calls_of, operations_of

OPERATIONS = 70
"""Bytecode instructions for each tensor, in loops that read gradients, counts and state."""


def steady_step(name: str, count: int, new_gradients: bool) -> Callable[[], Any]:
    params = tensors(count)
    optimizer = CASES[name](params)
    for _ in range(2):
        optimizer.step()
    if new_gradients:
        renew_gradients(params)
    return optimizer.step


@pytest.mark.parametrize("new_gradients", [False, True], ids=["", "new"])
@pytest.mark.parametrize("name", CASES)
def test_a_steady_step_calls_nothing_for_each_tensor(name: str, new_gradients: bool) -> None:
    with no_kernels():
        few, many = (calls_of(steady_step(name, n, new_gradients)) for n in (FEW, MANY))
        assert many - few <= 2  # nothing but the odd call of the garbage collector
        few, many = (operations_of(steady_step(name, n, new_gradients)) for n in (FEW, MANY))
        assert (many - few) / (MANY - FEW) <= OPERATIONS
