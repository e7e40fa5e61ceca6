"""Writes ``csrc/common/tables.h`` from the registry of ops: ``python -m tools.tables_header``.

``make format`` aligns its comments afterwards.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fused_optim import ops
from fused_optim.plan.layout import MAX_DIMS

HEADER = Path(__file__).resolve().parents[1] / "csrc/common/tables.h"

_NOTES = {
    "exp_avg_sq": "Adafactor: row statistics, or the unfactored second moment",
    "max_exp_avg_sq": "Adafactor: column statistics",
    "extra": "master, remainder or compensation, by the bucket's mode",
    "layout": "0, or the address of a Layout",
    "global_numel": "of the unsharded tensor, as are the next two",
}

_TOP = """\
// The packed tables that the launch plan uploads: docs/kernel_contract.md, sections 3 to 5 and 7.
// Written by tools/tables_header.py from fused_optim/ops.py; change that, and write this again.
#pragma once

#include <cstdint>

namespace fused_optim {

enum DtypeTag : int64_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat64 = 3 };

enum RecordFlags : int64_t { kAligned = 1 };
"""

_LAYOUT = """\
constexpr int kMaxLayoutDims = %(dims)d;

// Sizes and per-tensor strides, in elements, of a record whose tensors do not share one dense
// memory order.
struct Layout {
  int64_t ndim;
  int64_t sizes[kMaxLayoutDims];
  int64_t strides[7][kMaxLayoutDims];  // param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, extra,
                                       // element
};
static_assert(sizeof(Layout) == %(words)d * sizeof(int64_t), "%(words)d int64 per layout block");

}  // namespace fused_optim
"""


def text() -> str:
    """Return what the header holds."""
    flags = ("SCALE_PARAMETER", "HOLD_IF_ZERO", "CLIP_IGNORES_NAN")
    values = ", ".join(f"k{name.title().replace('_', '')} = {getattr(ops, name)}" for name in flags)
    enum = f"enum AdafactorRowFlags : uint32_t {{ {values} }};\n"
    layout = _LAYOUT % {"dims": MAX_DIMS, "words": 1 + 8 * MAX_DIMS}
    rows = [_row(family) for family in ops.FAMILIES.values()]
    return "\n".join([_TOP, enum, _record(), *rows, layout])


def _record() -> str:
    members = [f"  int64_t {name};{_note(name)}" for name in ops.RECORD_FIELDS]
    members.append(f"  int64_t reserved[{ops.RECORD_SIZE - len(ops.RECORD_FIELDS)}];")
    return _struct(
        "// One parameter of a bucket. Addresses are of global memory, 0 where absent.",
        "TensorRecord",
        members,
        f"{ops.RECORD_SIZE} * sizeof(int64_t)",
        f"{ops.RECORD_SIZE} int64 per tensor record",
    )


def _row(family: ops.Family) -> str:
    fields = dataclasses.fields(family.row)
    kinds = {"float": "float", "int": "uint32_t"}
    members = [f"  {kinds[field.type]} {field.name};" for field in fields]
    members.append(f"  float reserved[{ops.ROW_SIZE - len(fields)}];")
    return _struct(
        f"// The scalars of one (group, step count, variant) of {family.name}.",
        family.row.__name__,
        members,
        f"{ops.ROW_SIZE} * sizeof(float)",
        f"{ops.ROW_SIZE} words per row",
    )


def _note(name: str) -> str:
    return f"  // {_NOTES[name]}" if name in _NOTES else ""


def _struct(comment: str, name: str, members: list[str], size: str, says: str) -> str:
    check = f'static_assert(sizeof({name}) == {size}, "{says}");'
    return "\n".join([comment, f"struct {name} {{", *members, "};", check, ""])


if __name__ == "__main__":
    HEADER.write_text(text())
