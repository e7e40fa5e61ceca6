"""Takes the mask from each masked access of Triton's elementwise kernels; prints what is missed.

    TRITON_INTERPRET=0 python triton_masks.py

prints JSON: for each kernel how many accesses were tried, and the lines of those that no fault
follows.
"""

from __future__ import annotations

import json
import re

import torch
from entries import bucket_of, entry_of, key_of
from prepared import OnBuckets

from fused_optim import triton_kernels
from fused_optim.backends.interface import Launch
from ptx import machine, triton_ptx

MASKED = re.compile(r"^(\s*(?:\{ )?)@!?%p\d+ ((?:ld|st)\.global)")


def step(op: str) -> None:
    """Step a tensor that is shorter than any block of a kernel."""
    key = key_of(torch.bfloat16, "split", op=op)
    entry = entry_of(key, (37,), grad=torch.bfloat16, state=torch.bfloat16)
    getattr(OnBuckets(triton_kernels), f"{op}_")(bucket_of(key, [entry]), Launch())


def without_mask(line: int):
    """Return an edit of one line."""

    def edit(name: str, text: str) -> str:
        lines = text.splitlines()
        lines[line - 1] = MASKED.sub(r"\1\2", lines[line - 1])
        return "\n".join(lines) + "\n"

    return edit


def tried(op: str) -> tuple[int, list[int]]:
    """Return how many accesses a step of an op has, and the lines of those that are missed."""
    texts: list[str] = []

    def keep(name: str, text: str) -> str:
        texts.append(text)
        return text

    triton_ptx.edit = keep
    step(op)
    _, counts = triton_ptx.executed[-1]
    lines = texts[-1].splitlines()
    masked = [line for line in sorted(counts.lines) if MASKED.match(lines[line - 1])]
    missed = []
    for line in masked:
        triton_ptx.edit = without_mask(line)
        try:
            step(op)
        except machine.PtxFault:
            continue
        missed.append(line)
    return len(masked), missed


if __name__ == "__main__":
    with triton_ptx.installed():
        print(json.dumps({op: tried(op) for op in ("adamw", "lion")}))
