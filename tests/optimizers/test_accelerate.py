"""accelerate with these optimizers, unmodified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizer_table import (
    Row,
    assert_identical,
    every_optimizer,
    every_optimizer_slowly,
    row,
    snapshot,
)
from regression import Regression, examples, loader

from fused_optim import AdamW

# Its own warnings are no concern of these tests.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def accelerator() -> Iterator[Any]:
    accelerate = pytest.importorskip("accelerate")
    yield accelerate.Accelerator(cpu=True)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@every_optimizer_slowly
def test_accelerate_trains_saves_and_resumes(row: Row, accelerator: Any, tmp_path: Path) -> None:
    def prepared():
        model = Regression(torch.bfloat16)
        return accelerator.prepare(model, row.build(model), loader())

    def epoch(model, optimizer, batches, backward):
        for batch in batches:
            optimizer.zero_grad()
            backward(model(**batch)["loss"])
            optimizer.step()

    plain_model = Regression(torch.bfloat16)
    plain = row.build(plain_model)
    model, optimizer, batches = prepared()
    assert optimizer.optimizer is not plain and type(optimizer.optimizer) is type(plain)
    epoch(model, optimizer, batches, accelerator.backward)
    epoch(plain_model, plain, loader(), torch.Tensor.backward)
    assert_identical(snapshot(optimizer.optimizer), snapshot(plain))
    accelerator.save_state(str(tmp_path))
    epoch(model, optimizer, batches, accelerator.backward)
    expected = snapshot(optimizer.optimizer)

    accelerator.free_memory()
    model, optimizer, batches = prepared()
    accelerator.load_state(str(tmp_path))
    assert_identical(snapshot(optimizer.optimizer), snapshot(plain))
    epoch(model, optimizer, batches, accelerator.backward)
    assert_identical(snapshot(optimizer.optimizer), expected)


@every_optimizer
def test_accelerate_sees_skipped_steps(row: Row, accelerator: Any) -> None:
    """torch's fused AdamW reports False here, and the scheduler then runs ahead."""
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    model = Regression()
    inner = row.build(model)
    model, optimizer = accelerator.prepare(model, inner)
    skipped = []
    for scale in (1.0, float("inf"), 1.0):
        before = snapshot(inner)
        optimizer.zero_grad()
        batch = examples()[0]
        accelerator.backward(model(**batch)["loss"] * scale)
        optimizer.step()
        skipped.append(accelerator.optimizer_step_was_skipped)
        if skipped[-1]:
            assert_identical(snapshot(inner), before)
    assert skipped == [False, True, False]
    assert inner.state[next(iter(model.parameters()))]["step"] == 2


@pytest.mark.parametrize("name", ["AdamW", "Adafactor-lr", "torch-AdamW"])
def test_accelerate_accumulates_clips_and_schedules(name: str, accelerator: Any) -> None:
    """Steps and rates of a loop by hand, the last window of an epoch shorter than the others."""
    rates = [1.0, 0.5, 0.25, 0.125]

    def build(model: Regression) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = row(name).build(model)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: rates[min(s, 3)])

    model = Regression(torch.bfloat16)
    inner, inner_schedule = build(model)
    accelerator.gradient_accumulation_steps = 3
    model, optimizer, schedule, batches = accelerator.prepare(
        model, inner, inner_schedule, loader()
    )
    steps = []
    for batch in batches:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        steps.append(inner.state[model.inner.weight].get("step", 0))
    assert steps == [0, 0, 1, 2]

    plain_model = Regression(torch.bfloat16)
    plain, plain_schedule = build(plain_model)
    whole = list(loader())
    for window in (whole[:3], whole[3:]):
        for batch in window:
            (plain_model(**batch)["loss"] / 3).backward()
        torch.nn.utils.clip_grad_norm_(plain_model.parameters(), 0.1)
        plain.step()
        plain_schedule.step()
        plain.zero_grad()
    assert inner_schedule.get_last_lr() == plain_schedule.get_last_lr()
    assert_identical(snapshot(inner), snapshot(plain))


def test_a_norm_of_the_optimizers_own_needs_no_call(accelerator: Any) -> None:
    """`max_grad_norm` of the optimizer clips what accelerate has accumulated."""
    model = Regression()
    inner = AdamW(model.parameters(), lr=1e-2, max_grad_norm=0.1)
    accelerator.gradient_accumulation_steps = 2
    model, optimizer, batches = accelerator.prepare(model, inner, loader())
    for batch in batches:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)["loss"])
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
            optimizer.step()
            if accelerator.sync_gradients:
                torch.testing.assert_close(inner.grad_norm, norm)
                assert norm > 0.1
            optimizer.zero_grad()
    assert inner.state[model.inner.weight]["step"] == 2
