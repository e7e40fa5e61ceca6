"""The eager backend works in blocks; where they end must not show in what it computes."""

from __future__ import annotations

import pytest
from cases import CASES, DTYPE_MODES, SHAPES, TensorCase, eager_only
from parity import Bench

from fused_optim.precision import encoding

pytestmark = eager_only
TENSORS = [TensorCase(shape, dtype, mode) for dtype, mode in DTYPE_MODES for shape in SHAPES]
SIZES = (1, 3, 8)


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"{CASES[i]}-{SIZES[i % 3]}")
def test_small_blocks(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adafactor: whole matrices, rows and parts of rows at a time, and small tensors in batches."""
    monkeypatch.setitem(encoding._BLOCK, "cpu", SIZES[index % 3])
    bench = Bench(CASES[index], TENSORS)
    bench.randomise(3)
    bench.step_and_check(3, bench.set_gradients())
