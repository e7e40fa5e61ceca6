"""pytest-benchmark cases: the time of `step()` for every optimizer, grouped by list and dtype.

``make bench`` takes a small model in the dtype that each optimizer is first meant for, and many
small float32 tensors; ``BENCH_ARGS="-m ''"`` adds the rest. ``python -m bench`` compares in turns.
"""

import itertools
from collections.abc import Iterator

import pytest
import torch

from bench.run import Session
from bench.setups import OURS, SETUPS
from bench.shapes import SHAPES
from bench.subject import Subject, free
from fused_optim.backends import dispatch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Peers warn of what is theirs.
pytestmark = pytest.mark.filterwarnings("default")


def cases() -> Iterator[object]:
    """Every optimizer, backend that runs here, list of shapes and dtype."""
    backends = [b for b in dispatch.BACKENDS if dispatch.why_not(b, "adamw_", DEVICE) is None]
    for setup in SETUPS.values():
        ours = backends if setup.source == OURS else (None,)
        for backend, shapes, dtype in itertools.product(ours, SHAPES, setup.dtypes):
            name = "-".join(filter(None, (setup.name, backend, shapes, dtype)))
            first = (dtype, shapes) == (setup.dtypes[0], "gpt2-30M")
            quick = first or (dtype, shapes) == ("fp32", "tiny-1000")
            marks = () if quick else pytest.mark.long
            yield pytest.param(setup, backend, shapes, dtype, id=name, marks=marks)


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(DEVICE, rounds=1)


@pytest.mark.parametrize(("setup", "backend", "shapes", "dtype"), list(cases()))
def test_step(benchmark, session, setup, backend, shapes, dtype) -> None:
    free()  # what the case before this one held
    if reason := session.why_not(setup, dtype):
        pytest.skip(reason)
    benchmark.group = f"{shapes}, {dtype}"
    subject = Subject(setup, shapes, dtype, DEVICE, backend)

    def finished_step() -> None:
        subject.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize(DEVICE)

    benchmark.pedantic(finished_step, rounds=5, warmup_rounds=1)
