"""torch's defaults for new tensors, which others set: the package's own name device and dtype."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import each_backend
from optimizer_table import (
    MODES,
    ROWS,
    assert_identical,
    parameters,
    params_of,
    row,
    set_gradients,
    snapshot,
)

import fused_optim

SHAPES = ((3, 5), (5,), (2, 3, 4))


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    with torch.device("meta"):
        yield


@contextlib.contextmanager
def meta_set() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AMBIENT = pytest.mark.parametrize("ambient", [on_meta, meta_set, in_float64])


def steps(build: Callable[[], torch.optim.Optimizer], ambient: Callable) -> list[Any]:
    """Return what an optimizer holds after steps, a load and more steps under ``ambient``.

    Gradients are made outside: they are the user's.
    """
    optimizer, twin = build(), build()
    scale = torch.tensor(2.0), torch.tensor(0.0)
    for each, numbers in ((optimizer, (1, 2, 3)), (twin, (4, 5))):
        if each is twin:
            with ambient():
                twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for number in numbers:
            set_gradients(params_of(each), number)
            if number == 3:
                each.grad_scale, each.found_inf = scale
            with ambient():
                each.step()
            if number == 3:
                del each.grad_scale, each.found_inf
    return [snapshot(optimizer), snapshot(twin)]


@AMBIENT
@each_backend
@pytest.mark.parametrize("name", ["AdamW", "Adafactor-momentum", "torch-AdamW"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_steps_are_the_same(name: str, dtype: torch.dtype, backend: str, ambient: Callable) -> None:
    def build() -> torch.optim.Optimizer:
        return row(name).build(parameters(dtype, SHAPES), backend=backend, max_grad_norm=1.0)

    assert_identical(steps(build, ambient), steps(build, contextlib.nullcontext))


@AMBIENT
@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("each", ROWS, ids=lambda row: row.name)
def test_every_optimizer_and_mode_trains_the_same(
    each: Any, capturable: bool, ambient: Callable
) -> None:
    if capturable and callable(each.kwargs.get("learning_rate")) or each.name == "create_optimizer":
        capturable = False  # a rate that the host works out
    for dtype, modes in MODES.items():
        for mode in modes:

            def build(dtype=dtype, mode=mode) -> torch.optim.Optimizer:
                options = {"low_precision": mode, "capturable": capturable}
                return each.build(parameters(dtype, SHAPES), **options)

            assert_identical(steps(build, ambient), steps(build, contextlib.nullcontext))


@AMBIENT
@pytest.mark.parametrize("name", ["AdamW", "Adafactor-momentum"])
def test_reports_and_exports_are_the_same(name: str, ambient: Callable) -> None:
    found = []
    for context in (ambient, contextlib.nullcontext):
        model = torch.nn.Linear(5, 3)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
        model.bfloat16()
        optimizer = row(name).build(model)
        with context():
            optimizer.init_state()
        set_gradients(params_of(optimizer), 1)
        with context():
            optimizer.step()
            findings = list(map(str, optimizer.check_numerics(threshold=0.0)))
            weights = optimizer.fp32_state_dict(model)
            optimizer.load_fp32_state_dict(model, weights)
        found.append([findings, dict(weights), snapshot(optimizer)])
    assert_identical(*found)


@AMBIENT
def test_gradients_accumulate_the_same(ambient: Callable) -> None:
    accumulator = fused_optim.GradientAccumulator(dtype=torch.float32)
    gradients = [torch.ones(3, dtype=torch.bfloat16), None, torch.ones(2, 2)]
    with ambient():
        for _ in range(3):
            accumulator(gradients)
    assert [g if g is None else g.tolist() for g in accumulator.gradients] == [
        [3.0] * 3,
        None,
        [[3.0] * 2] * 2,
    ]
