"""Writes what a step on the host costs into docs/offloading.md.

``python tests/support/offloading_page.py``. Bytes of a step are those that cpu_traffic.py counted.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import NamedTuple

import bench_package  # noqa: F401
import torch
import written_pages

from bench import ROOT, pages
from bench.tables import figure
from bench.traffic import Kind
from fused_optim.ops import FAMILIES
from fused_optim.precision import eight_bit, extra_state

PAGE = ROOT / "docs" / "offloading.md"
COUNTS = ROOT / "bench" / "results" / "traffic_cpu.json"
BFLOAT16 = ("bfloat16", "bfloat16")
KINDS = (
    Kind("adamw"),
    Kind("adamw", *BFLOAT16, "split"),
    Kind("adamw", *BFLOAT16, "split", "bfloat16"),
    Kind("adamw", *BFLOAT16, "split", "uint8"),
    Kind("adamw", *BFLOAT16, "stochastic", "bfloat16"),
    Kind("lion", *BFLOAT16, "split", "bfloat16"),
    *(
        Kind("adafactor", dtype, dtype, mode, None, False, scale, visited=visited)
        for dtype, mode in (("float32", "none"), ("bfloat16", "split"))
        for scale in (False, True)
        for visited in (False, True)
    ),
)
"""What is counted."""


class Row(NamedTuple):
    """One row: what it is called, and its kind."""

    name: str
    kind: Kind


ROWS = (
    Row("`AdamW`, fp32", Kind("adamw")),
    Row("`AdamW`, bf16 (`split`)", Kind("adamw", *BFLOAT16, "split")),
    Row(
        "`AdamW`, bf16, `state_dtype=torch.bfloat16`",
        Kind("adamw", *BFLOAT16, "split", "bfloat16"),
    ),
    Row('`AdamW`, bf16, `state_dtype="int8"`', Kind("adamw", *BFLOAT16, "split", "uint8")),
    Row(
        "`torch_compat.AdamW`, bf16 (`stochastic`, bf16 moments)",
        Kind("adamw", *BFLOAT16, "stochastic", "bfloat16"),
    ),
    Row("`Adafactor`, fp32", Kind("adafactor", state_dtype=None)),
    Row("`Adafactor`, bf16 (`split`)", Kind("adafactor", *BFLOAT16, "split", None)),
)


def counted() -> dict[Kind, dict[str, float]]:
    """Return the committed counts."""
    rows = json.loads(COUNTS.read_text())["rows"]
    return {Kind(**row["kind"]): {k: v for k, v in row.items() if k != "kind"} for row in rows}


def _held(kind: Kind) -> str:
    """Return the bytes of a parameter, its gradient and its state."""
    dtype = getattr(torch, kind.dtype)
    extra = extra_state(kind.mode, dtype)
    held = 2 * dtype.itemsize + (extra[1].itemsize if extra else 0)
    if not FAMILIES[kind.op].elementwise:
        return f"{held} and the statistics"
    packed = eight_bit.RECORD / eight_bit.BLOCK
    state = packed if kind.state_dtype == "uint8" else getattr(torch, kind.state_dtype).itemsize
    return figure(held + 2 * state, 3)


def _moved(kind: Kind) -> str:
    counts = counted()
    if FAMILIES[kind.op].elementwise:
        return figure(counts[kind]["once"], 3)
    scaled = counts[replace(kind, scale_parameter=True)]["moved"]
    return (
        f"{figure(counts[kind]['moved'], 3)}, with `scale_parameter` {figure(scaled, 3)}; "
        f"{figure(counts[kind]['once'], 3)} of tensors that fit a core's cache"
    )


def costs() -> str:
    """Return the table."""
    head = (
        *("optimizer, parameter", "held on the host, gradient included"),
        *("read and written by a step", "over the link, by hand"),
    )
    rows = [
        (row.name, _held(row.kind), _moved(row.kind), 2 * getattr(torch, row.kind.dtype).itemsize)
        for row in ROWS
    ]
    return pages.markdown(head, rows)


TABLES = {"costs": costs}


def main(arguments: list[str] | None = None) -> None:
    written_pages.rewrite(PAGE, TABLES, __doc__, arguments)


if __name__ == "__main__":
    main()
