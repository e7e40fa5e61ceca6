"""pytest-benchmark cases: the time of `step()` for every optimizer, grouped by list and dtype.

``make bench`` takes the lists of `QUICK_SHAPES` in the dtype that each optimizer is first meant
for; ``BENCH_ARGS="-m ''"`` adds the rest. ``python -m bench`` compares optimizers in turns.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bench.session import Session
from bench.setups import OURS, SETUPS
from bench.shapes import SHAPES
from bench.subject import Subject, free
from fused_optim import dispatch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
QUICK_SHAPES = ("gpt2-30M", "tiny-1000")
_PEERS_SESSION: list[Session] = []


def cases() -> Iterator[object]:
    """Every optimizer, backend that runs here, list of shapes and dtype."""
    for setup in SETUPS.values():
        backends = _backends() if setup.source == OURS else (None,)
        for backend in backends:
            for shapes in SHAPES:
                for dtype in setup.dtypes:
                    quick = shapes in QUICK_SHAPES and dtype == setup.dtypes[0]
                    name = "-".join(filter(None, (setup.name, backend, shapes, dtype)))
                    marks = () if quick else pytest.mark.long
                    yield pytest.param(setup, backend, shapes, dtype, id=name, marks=marks)


def _backends() -> list[str]:
    if DEVICE.type == "cpu":
        return ["eager"]
    return [b for b in dispatch.BACKENDS if dispatch.why_not(b, "adamw_", DEVICE) is None]


@pytest.mark.parametrize(("setup", "backend", "shapes", "dtype"), cases())
def test_step(benchmark, setup, backend, shapes, dtype) -> None:
    if not _PEERS_SESSION:
        _PEERS_SESSION.append(Session(DEVICE, rounds=1))
    session = _PEERS_SESSION[0]
    if not session.works(setup, dtype):
        pytest.skip(session.results.missing[-1].why)
    benchmark.group = f"{shapes}, {dtype}"
    subject = Subject(setup, shapes, dtype, DEVICE, backend)

    def step() -> None:
        subject.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)

    benchmark.pedantic(step, rounds=5, warmup_rounds=2)
    del subject
    free()
