"""pytest-benchmark cases: the time of `step()` for every optimizer, grouped by shape list."""

from __future__ import annotations

import pytest

from bench.cases import SETUPS


@pytest.mark.parametrize("shapes", ["gpt2-30M", "lora-r16", "tiny-1000"])
@pytest.mark.parametrize("name", SETUPS)
def test_step(benchmark, name: str, shapes: str) -> None:
    benchmark.group = shapes
    optimizer = SETUPS[name].optimizer(shapes)
    benchmark.pedantic(optimizer.step, rounds=5, warmup_rounds=1)
