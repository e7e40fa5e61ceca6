"""How much Python a function runs: times vary, the number of operations does not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

FEW, MANY = 10, 110


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
