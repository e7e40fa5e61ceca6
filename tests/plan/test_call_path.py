"""How much code a step passes through: what CONTRIBUTING says of it, profiled anew."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from cases import BACKENDS

import fused_optim

CONTRIBUTING = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
PACKAGE = str(Path(fused_optim.__file__).parent)


def passed(optimizer: torch.optim.Optimizer) -> set[CodeType]:
    """Return the package's functions that a step passes through, comprehensions aside."""
    found: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        ours = code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<")
        if event == "call" and ours:
            found.add(code)

    sys.setprofile(note)
    try:
        optimizer.step()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b == "cuda"], indirect=True)
def test_contributing_says_how_much_code_a_step_passes(backend: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for _ in range(2):  # the first optimizer of a process also fills caches
        params = [torch.nn.Parameter(torch.ones(8, 8, device=device)) for _ in range(3)]
        optimizer = fused_optim.AdamW(params, weight_decay=0.1, backend=backend)
        steps = []
        for _ in range(4):
            for p in params:
                p.grad = torch.ones_like(p)
            steps.append(passed(optimizer))
    functions, files, first = re.search(
        r"a steady AdamW step on the CUDA backend passes through (\d+) functions in (\d+)\s+"
        r"files; a first one through (\d+) files",
        CONTRIBUTING,
    ).groups()
    steady, begun = steps[-1], {code.co_filename for code in steps[0]}
    assert len(steady) == int(functions), sorted(code.co_name for code in steady)
    assert len({code.co_filename for code in steady}) == int(files)
    assert len(begun) == int(first), sorted(begun)
