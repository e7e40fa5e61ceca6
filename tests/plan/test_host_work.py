"""What Python does in a steady step: times vary, the number of operations does not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import bench_package  # noqa: F401
import pytest

from bench.host_time import CASES, no_kernels, renew_gradients, tensors

FEW, MANY = 10, 110
OPERATIONS = 70
"""Bytecode instructions for each tensor, in loops that read gradients, counts and state."""


def calls_of(function: Callable[[], Any]) -> int:
    """Return how many calls the interpreter makes; those made within `map` it does not see."""
    calls = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


def operations_of(function: Callable[[], Any]) -> int:
    """Return how many bytecode instructions run."""
    operations = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal operations
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        operations += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(None)
    return operations


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
