"""GreedyLR beyond transformers' values: errors, added groups, copies, what it prints."""

import copy
import math
import pickle

import pytest
import torch
from schedule_cases import history, metrics, sgd

import fused_optim
from fused_optim.schedules import GreedyLR, get_greedy_schedule


def test_pickled_and_copied_schedules_go_on():
    scheduler = GreedyLR(sgd(0.5), patience=0, smooth=True, window_size=4)
    history(scheduler, metrics(6)[:50])
    copies = [pickle.loads(pickle.dumps(scheduler)), copy.deepcopy(scheduler)]
    expected = history(scheduler, metrics(6)[50:])
    assert all(history(other, metrics(6)[50:]) == expected for other in copies)


def test_verbose_prints_each_change_and_the_reset(capsys):
    options = {"patience": 0, "factor": 0.5, "min_lr": 0.2, "reset_start": 1}
    history(GreedyLR(sgd(0.5), **options), [1.0, 2.0, 2.0, 2.0])
    assert capsys.readouterr().out == ""
    history(GreedyLR(sgd(0.5), verbose=True, **options), [1.0, 2.0, 2.0, 2.0])
    assert capsys.readouterr().out.splitlines() == [
        "GreedyLR, step 1: group 0 has learning rate 1.0000e+00",
        "GreedyLR, step 2: group 0 has learning rate 5.0000e-01",
        "GreedyLR, step 3: group 0 has learning rate 2.5000e-01",
        "GreedyLR, step 4: group 0 has learning rate 2.0000e-01",
        "GreedyLR, step 4: back to the rates of the start",
    ]


def test_a_group_added_later_has_the_common_bounds_and_its_own_start():
    """transformers fails with an IndexError."""
    optimizer = sgd(0.5)
    scheduler = GreedyLR(optimizer, patience=0, factor=0.5, min_lr=0.2, reset_start=1)
    scheduler.step(1.0)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.25})
    assert history(scheduler, [2.0, 2.0, 2.0]) == [[0.5, 0.2], [0.25, 0.2], [0.5, 0.25]]

    scheduler = GreedyLR(sgd(0.5), max_lr=[1.0])
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    with pytest.raises(RuntimeError, match=r"2 parameter groups, and max_lr .* list of 1.*max_lrs"):
        scheduler.step(1.0)
    scheduler.max_lrs.append(0.5)
    scheduler.step(1.0)


def test_a_state_of_more_groups_is_refused_untouched():
    scheduler = GreedyLR(sgd(0.5))
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match=r"optimizer with 2 parameter groups, and this one has 1"):
        scheduler.load_state_dict(GreedyLR(sgd(0.1, 0.2), patience=0).state_dict())
    assert scheduler.state_dict() == before
    assert scheduler.optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1.0}, r"factor is 1\.0; it must be between 0 and 1"),
        ({"factor": 0.0}, r"factor is 0\.0"),
        ({"factor": math.nan}, r"factor is nan"),
        ({"mode": "least"}, r"mode is 'least', it must be one of min, max"),
        ({"threshold_mode": "x"}, r"threshold_mode is 'x', it must be one of rel, abs"),
        ({"patience": -1}, r"patience is -1; it must be at least 0"),
        ({"cooldown": -2}, r"cooldown is -2"),
        ({"warmup": -1}, r"warmup is -1"),
        ({"reset_start": -1}, r"reset_start is -1"),
        ({"window_size": 0}, r"window_size is 0; it must be at least 1"),
        ({"min_lr": [0.1, 0.2]}, r"expected 1 min_lrs, got 2"),
        ({"max_lr": [0.1, 0.2]}, r"expected 1 max_lrs, got 2"),
        (
            {"min_lr": 0.5, "max_lr": 0.1},
            r"min_lr is 0\.5 and max_lr is 0\.1 for param_groups\[0\]",
        ),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GreedyLR(sgd(0.5), **options)


def test_what_cannot_be_scheduled_is_refused():
    with pytest.raises(TypeError, match="Linear is not an Optimizer"):
        GreedyLR(torch.nn.Linear(1, 1))
    adafactor = fused_optim.Adafactor([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(TypeError, match=r"param_groups\[0\]\['lr'\] is None"):
        get_greedy_schedule(adafactor)


def test_loops_that_know_plateau_schedules_hand_it_their_metric():
    """The transformers Trainer asks for this class, or its own GreedyLR."""
    scheduler = GreedyLR(sgd(0.5))
    assert isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    # For the same reason torch refuses it where nothing hands a metric on.
    with pytest.raises(ValueError, match="does not support"):
        torch.optim.lr_scheduler.SequentialLR(scheduler.optimizer, [scheduler], [])


def test_a_state_dict_is_a_copy():
    scheduler = GreedyLR(sgd(torch.tensor(0.5)), patience=0, smooth=True)
    state = scheduler.state_dict()
    before = copy.deepcopy(state)
    history(scheduler, metrics(0))
    assert state == before
    scheduler.load_state_dict(state)
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    history(scheduler, metrics(0))
    assert state == before


def test_groups_added_later_are_not_added_to_a_state_saved_before():
    scheduler = GreedyLR(sgd(0.5))
    state = scheduler.state_dict()
    before = copy.deepcopy(state)
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    scheduler.step(1.0)
    assert state == before != scheduler.state_dict()


def test_a_float32_tensor_arrives_at_a_bound_that_it_rounds():
    """0.1 is larger in float32: compared in float64, the rate would never be at its bound."""
    scheduler = GreedyLR(
        sgd(torch.tensor(0.5)), patience=0, factor=0.5, min_lr=0.1, reset_start=1, eps=0.0
    )
    history(scheduler, [1.0] * 5)
    assert scheduler.optimizer.param_groups[0]["lr"] == torch.tensor(0.5)
