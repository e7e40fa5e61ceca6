"""The table of cases where kernels are interpreted: fewer tensors for each case, none left out."""

from __future__ import annotations

import cases
import pytest
from cases import DTYPE_MODES, SHAPES, TABLES, Case, TensorCase, tensor_cases


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_turns_meet_every_combination(table: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    def storage(t: TensorCase) -> tuple:
        return t.dtype, t.mode, t.grad_dtype, t.state_dtype

    every = {storage(t) for t in tensor_cases(0)}
    monkeypatch.setattr(cases, "interpreted", lambda backend: True)
    met = [t for turn in range(len(table)) for t in tensor_cases(turn, "triton")]
    assert {storage(t) for t in met} == every
    shapes = {(t.dtype, t.mode, t.shape) for t in met}
    assert len(shapes) == len(DTYPE_MODES) * len(set(SHAPES))


def test_turns_meet_every_item(monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(range(10))
    assert cases.in_turns(items, "eager", 3, of=4) == items
    monkeypatch.setattr(cases, "interpreted", lambda backend: True)
    parts = [cases.in_turns(items, "triton", turn, of=4) for turn in range(8)]
    assert sorted(sum(parts[:4], [])) == items and parts[:4] == parts[4:]
