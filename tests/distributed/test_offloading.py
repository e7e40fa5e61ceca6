"""The page on offloading, and its program, run on a CPU."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from processes import needs_gloo, printed_by

ROOT = Path(__file__).parents[2]


@needs_gloo
def test_the_program_learns_on_two_processes(tmp_path: Path) -> None:
    printed = printed_by(ROOT / "examples/offload.py", tmp_path, count=2)
    losses = [float(loss) for loss in re.findall(r"^step \d+: loss (\S+)$", printed, re.M)]
    assert len(losses) == 3
    assert losses[2] < losses[0] / 3


def test_copies_in_host_memory_are_trained_as_the_page_says() -> None:
    page = (ROOT / "docs/offloading.md").read_text()
    [program] = [code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "held" in code]
    torch.manual_seed(0)
    names: dict = {}
    exec(program, names)
    x = torch.randn(64, 64, dtype=torch.bfloat16, device=names["device"])
    assert (names["model"](x) - x).float().square().mean() < 0.1
    assert all(
        torch.equal(p.cpu(), q)
        for p, q in zip(names["model"].parameters(), names["held"], strict=True)
    )
