"""Learning rates that AdamWeightDecay finds for itself, at the first step and at all later ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import device_of, each_backend

import fused_optim

RATES = (0.5, 0.25, 1.0, 0.125, 0.75)


def moved(optimizer: torch.optim.Optimizer, param: torch.nn.Parameter) -> list[float]:
    """How far each of some steps moves a parameter whose gradient is always 1: by its rate."""
    distances = []
    for _ in RATES:
        before = param.detach().clone()
        param.grad = torch.ones_like(param)
        optimizer.step()
        distances.append(float((before - param.detach()).mean()))
    return distances


def built(backend: str, rate: float | Callable[[int], float], **options) -> tuple:
    param = torch.nn.Parameter(torch.ones(4, device=device_of(backend)))
    return fused_optim.AdamWeightDecay([param], rate, backend=backend, **options), param


@each_backend
def test_a_callable_is_asked_once_a_step(backend: str) -> None:
    asked: list[int] = []

    def rate(step: int) -> float:
        asked.append(step)
        return RATES[step]

    optimizer, param = built(backend, rate)
    assert asked == [0]  # for the rate that is shown before the first step
    assert moved(optimizer, param) == pytest.approx(RATES, rel=1e-5)
    assert asked == [0, *range(len(RATES))]
    assert optimizer.param_groups[0]["iterations"] == len(RATES)


@each_backend
def test_the_old_decay_counts_steps_that_were_made(backend: str) -> None:
    optimizer, param = built(backend, 0.5, decay=1.0)
    expected = [0.5 / (1 + made) for made in range(len(RATES))]
    assert moved(optimizer, param) == pytest.approx(expected, rel=1e-5)


def test_a_rate_of_zero_before_the_first_step_is_no_schedules() -> None:
    """torch.distributed.checkpoint writes it to create state; any other rate is the schedule's."""
    for lr, expected in ((0.0, 0.0), (0.1, RATES[0])):
        optimizer, param = built("eager", lambda step: RATES[step])
        optimizer.param_groups[0]["lr"] = lr
        before = param.detach().clone()
        param.grad = torch.ones_like(param)
        optimizer.step()
        assert float((before - param.detach()).mean()) == pytest.approx(expected, rel=1e-5)
