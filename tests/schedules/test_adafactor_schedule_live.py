"""AdafactorSchedule on the real Adafactor, and transformers' own schedule on ours."""

import copy

import pytest
import torch
from optimizer_table import (
    assert_identical,
    parameters,
    params_of,
    set_gradients,
    snapshot,
    train,
)

from fused_optim import Adafactor, AdafactorSchedule, get_constant_schedule_with_warmup


def alpha(p_before, step, eps=1e-3, rho=None):
    """The step size of a parameter, from the paper's formula in float64."""
    rho = min(1e-2, step**-0.5) if rho is None else rho
    return rho * max(eps, p_before.double().square().mean().sqrt().item())


def two_groups(**options):
    first, second = parameters(shapes=[(4, 3), (5,)])
    return Adafactor([{"params": [first]}, {"params": [second]}], **options)


def before_step(optimizer):
    return [group["params"][0].detach().clone() for group in optimizer.param_groups]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reports_each_groups_alpha(dtype):
    params = parameters(dtype, shapes=[(4, 3), (5,)])
    optimizer = Adafactor([{"params": [p]} for p in params])
    schedule = AdafactorSchedule(optimizer, initial_lr=0.5)
    assert schedule.get_last_lr() == [0.5, 0.5]
    shown = before_step(optimizer)
    train(optimizer, [1])
    schedule.step()
    expected = [alpha(p, 1) for p in shown]
    assert schedule.get_last_lr() == [pytest.approx(a, rel=1e-6) for a in expected]
    assert [group["lr"] for group in optimizer.param_groups] == schedule.get_last_lr()
    assert all(type(lr) is float for lr in schedule.get_last_lr())


def test_the_written_rate_changes_no_step():
    """Not even the 0.0 that it starts with, which also marks the empty step of a checkpoint."""
    reported, plain = two_groups(weight_decay=0.1), two_groups(weight_decay=0.1)
    schedule = AdafactorSchedule(reported)
    assert [group["lr"] for group in reported.param_groups] == [0.0, 0.0]
    for step in (1, 2, 3):
        train(reported, [step])
        schedule.step()
        train(plain, [step])
    assert_identical(snapshot(reported)[:2], snapshot(plain)[:2])
    # A state dict with both a rate and relative_step=True, refused in a constructor, loads.
    resumed = two_groups(weight_decay=0.1)
    resumed.load_state_dict(copy.deepcopy(reported.state_dict()))
    assert AdafactorSchedule(resumed).get_lr() == schedule.get_last_lr()


def test_a_group_whose_first_parameter_is_frozen_reports_one_that_moved():
    """There transformers' list gets too short, and torch's zip raises."""
    frozen, moving = parameters(shapes=[(4, 3), (5,)])
    optimizer = Adafactor([{"params": parameters(shapes=[(2,)])}, {"params": [frozen, moving]}])
    schedule = AdafactorSchedule(optimizer, 0.25)
    shown = moving.detach().clone()
    train(optimizer, [1], skip=[1])
    schedule.step()
    assert len(schedule.get_last_lr()) == 2
    assert schedule.get_last_lr()[1] == pytest.approx(alpha(shown, 1), rel=1e-6)


def test_skipped_and_accumulated_steps_and_zero_grad_raise_nothing():
    optimizer = two_groups()
    schedule = AdafactorSchedule(optimizer, 0.25)
    set_gradients(params_of(optimizer), 1)
    schedule.step()  # before the optimizer's first step: transformers raises KeyError: 'step'
    assert schedule.get_last_lr() == [0.25, 0.25]
    optimizer.init_state()
    schedule.step()
    assert schedule.get_last_lr() == [0.25, 0.25]
    train(optimizer, [1])
    schedule.step()
    seen = schedule.get_last_lr()
    for set_to_none in (False, True):
        optimizer.zero_grad(set_to_none=set_to_none)
        schedule.step()
        assert schedule.get_last_lr() == seen
    optimizer.found_inf = torch.tensor(1.0)  # as GradScaler leaves it for a step to skip
    before = snapshot(optimizer)
    train(optimizer, [2])
    schedule.step()
    assert schedule.get_last_lr() == seen
    assert_identical(snapshot(optimizer), before)


def test_without_relative_step_rates_neither_compound_nor_vanish():
    """alpha = lr * RMS(p): written back to lr, it would be multiplied by RMS(p) each time."""
    optimizer = two_groups(lr=0.1, relative_step=False)
    plain = two_groups(lr=0.1, relative_step=False)
    schedule = AdafactorSchedule(optimizer)
    for step in (1, 2, 3):
        shown = before_step(optimizer)
        train(optimizer, [step])
        train(plain, [step])
        schedule.step()
        expected = [alpha(p, step, rho=0.1) for p in shown]
        assert schedule.get_last_lr() == [pytest.approx(a, rel=1e-6) for a in expected]
        assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]
    assert_identical(snapshot(optimizer), snapshot(plain))


def test_it_reports_beside_a_schedule_that_drives():
    optimizer = two_groups(lr=0.1, relative_step=False, scale_parameter=False)
    driver = get_constant_schedule_with_warmup(optimizer, 4)
    schedule = AdafactorSchedule(optimizer)
    seen = []
    for step in (1, 2, 3):
        train(optimizer, [step])
        schedule.step()
        driver.step()
        seen.append(schedule.get_last_lr()[0])
    assert seen == [0.0, 0.025, 0.05]


@pytest.mark.parametrize("options", [{}, {"warmup_init": True}, {"scale_parameter": False}])
def test_transformers_schedule_works_on_ours(options):
    theirs = pytest.importorskip("transformers.optimization")
    optimizer = two_groups(**options)
    params = [torch.nn.Parameter(p) for p in before_step(optimizer)]
    reference = theirs.Adafactor([{"params": [p]} for p in params], **options)
    schedules = [theirs.AdafactorSchedule(o) for o in (optimizer, reference)]
    for step in (1, 2, 3):
        for each, schedule in zip((optimizer, reference), schedules, strict=True):
            train(each, [step])
            schedule.step()
        ours, expected = ([float(lr) for lr in s.get_last_lr()] for s in schedules)
        assert ours == [pytest.approx(lr, rel=1e-6) for lr in expected]
