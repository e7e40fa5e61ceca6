"""The packed tables mean the same in Python and in C++: fused_optim/ops.py and csrc/tables.h."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from fused_optim import ops, precision
from fused_optim.plan import layout as plan_layout

SOURCE = (Path(__file__).resolve().parents[1] / "csrc/tables.h").read_text()
ROWS = {"AdamWRow": ops.AdamWRow, "AdafactorRow": ops.AdafactorRow}


def members(struct: str) -> list[tuple[str, str]]:
    """(type, name) of each member of a C++ struct, the reserved ones left out."""
    body = re.search(rf"struct {struct} {{(.*?)^}};", SOURCE, re.DOTALL | re.MULTILINE)[1]
    found = re.findall(r"^\s*(\w+) (\w+(?:\[\w+\])*);", body, re.MULTILINE)
    return [(kind, name) for kind, name in found if not name.startswith("reserved")]


def enumerators(enum: str) -> dict[str, int]:
    body = re.search(rf"enum {enum} : \w+ {{(.*?)}};", SOURCE, re.DOTALL)[1]
    return {name: int(value) for name, value in re.findall(r"(\w+) = (\d+)", body)}


def test_record_fields() -> None:
    found = members("TensorRecord")
    assert [name for _, name in found] == list(ops.RECORD_FIELDS)
    assert {kind for kind, _ in found} == {"int64_t"}
    assert len(found) <= ops.RECORD_SIZE
    assert f"sizeof(TensorRecord) == {ops.RECORD_SIZE} * sizeof(int64_t)" in SOURCE


@pytest.mark.parametrize("name", ROWS)
def test_row_fields(name: str) -> None:
    found = members(name)
    assert [member for _, member in found] == [f.name for f in dataclasses.fields(ROWS[name])]
    words = {"step", "flags"}
    assert all(kind == ("uint32_t" if name in words else "float") for kind, name in found)
    assert f"sizeof({name}) == {ops.ROW_SIZE} * sizeof(float)" in SOURCE


def test_tags_and_flags() -> None:
    tags = {f"k{str(d).split('.')[1].title()}": tag for d, tag in precision.DTYPE_TAGS.items()}
    tags["kBFloat16"] = tags.pop("kBfloat16")
    assert enumerators("DtypeTag") == tags
    assert enumerators("AdafactorRowFlags") == {
        "kScaleParameter": ops.SCALE_PARAMETER,
        "kHoldIfZero": ops.HOLD_IF_ZERO,
        "kClipIgnoresNan": ops.CLIP_IGNORES_NAN,
    }


def test_layout_block() -> None:
    dims = int(re.search(r"kMaxLayoutDims = (\d+)", SOURCE)[1])
    assert dims == plan_layout.MAX_DIMS
    assert "strides[7][kMaxLayoutDims]" in SOURCE
    assert f"sizeof(Layout) == {1 + dims + 7 * dims} * sizeof(int64_t)" in SOURCE
