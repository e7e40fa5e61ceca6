"""Writes ``csrc/common/tables.h`` from the registry of ops: ``python -m tools.tables_header``.

``make format`` aligns its comments afterwards.
"""

import dataclasses
from pathlib import Path

from bench.pages import render
from fused_optim import ops
from fused_optim.plan.layout import MAX_DIMS

HEADER = Path(__file__).resolve().parents[1] / "csrc/common/tables.h"
TEMPLATE = Path(__file__).with_name("tables.h.jinja")

_NOTES = {
    "exp_avg_sq": "Adafactor: row statistics, or the unfactored second moment",
    "max_exp_avg_sq": "Adafactor: column statistics",
    "extra": "master, remainder or compensation, by the bucket's mode",
    "layout": "0, or the address of a Layout",
    "global_numel": "of the unsharded tensor, as are the next two",
    "cut": "Adafactor: how often the backend's largest tiles were halved",
}


def text() -> str:
    """Return the content of the header."""
    flags = ("SCALE_PARAMETER", "HOLD_IF_ZERO", "CLIP_IGNORES_NAN")
    named = [f"k{name.title().replace('_', '')} = {getattr(ops, name)}" for name in flags]
    facts = {"ops": ops, "flags": named, "notes": _NOTES, "dims": MAX_DIMS}
    return render(TEMPLATE, fields_of=dataclasses.fields, **facts)


if __name__ == "__main__":
    HEADER.write_text(text())
