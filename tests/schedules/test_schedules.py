"""The schedules: a table of their values, their own options, their errors."""

import pytest
import torch
from schedule_cases import advance, build, sgd

from fused_optim import schedules

# name, arguments after the optimizer, rates from step 0 on with a base rate of 10.
TABLE = [
    ("constant", {}, [10] * 10),
    ("constant_with_warmup", {"W": 4}, [0, 2.5, 5, 7.5, 10, 10, 10, 10, 10, 10]),
    ("linear", {"W": 2, "T": 10}, [0, 5, 10, 8.75, 7.5, 6.25, 5, 3.75, 2.5, 1.25, 0, 0]),
    ("linear", {"W": 4, "T": 4}, [0, 2.5, 5, 7.5, 0, 0]),
    ("linear", {"W": -2, "T": 10}, [8.333333, 7.5, 6.666667]),
    ("linear", {"W": 0, "T": 0}, [0, 0]),
    (
        "cosine",
        {"W": 2, "T": 10},
        [0, 5, 10, 9.619398, 8.535534, 6.913417, 5, 3.086583, 1.464466, 0.380602]
        + [0, 0.380602, 1.464466, 3.086583],
    ),
    ("cosine", {"W": 4, "T": 4}, [0, 2.5, 5, 7.5, 10, 0, 10, 0]),
    (
        "cosine",
        {"W": 2, "T": 10, "num_cycles": 1},
        [0, 5, 10, 8.535534, 5, 1.464466, 0, 1.464466, 5, 8.535534, 10],
    ),
    (
        "cosine_with_restarts",
        {"W": 2, "T": 10, "num_cycles": 2},
        [0, 5, 10, 8.535534, 5, 1.464466, 10, 8.535534, 5, 1.464466, 0],
    ),
    (
        "cosine_with_restarts",
        {"W": 2, "T": 10, "num_cycles": 1.5},
        [0, 5, 10, 9.157348, 6.913417, 4.024548, 1.464466, 0.096074, 9.619398, 7.777851, 0, 0],
    ),
    ("cosine_with_restarts", {"W": 4, "T": 4}, [0, 2.5, 5, 7.5, 10, 0, 0]),
    (
        "polynomial",
        {"W": 2, "T": 10, "power": 2.0, "lr_end": 1e-7},
        [0, 5, 10, 7.65625, 5.625, 3.90625, 2.5, 1.40625, 0.625, 0.15625, 1e-7, 1e-7],
    ),
    (
        "polynomial",
        {"W": 2, "T": 10, "power": 0.5, "lr_end": 1},
        [0, 5, 10, 9.418729, 8.794229, 8.115125, 7.363961, 6.511352, 5.5, 4.181981, 1, 1],
    ),
    ("polynomial", {"W": 2, "T": 10, "power": 0, "lr_end": 1}, [0, 5] + [10] * 9 + [1]),
    (
        "inverse_sqrt",
        {"W": 2},
        [0, 5, 10, 8.164966, 7.071068, 6.324555, 5.773503, 5.345225, 5, 4.714045],
    ),
    (
        "inverse_sqrt",
        {"W": 2, "timescale": 10},
        [0, 5, 10, 9.534626, 9.128709, 8.77058, 8.451543, 8.164966],
    ),
    ("inverse_sqrt", {"W": 0, "timescale": 4}, [10, 8.944272, 8.164966, 7.559289, 7.071068]),
    ("inverse_sqrt", {"W": 0}, [10, 9.9995, 9.999, 9.998501]),
    (
        "cosine_with_min_lr",
        {"W": 2, "T": 10, "min_lr": 1},
        [0, 5, 10, 9.657458, 8.681981, 7.222075, 5.5, 3.777925, 2.318019, 1.342542, 1, 1.342542],
    ),
    (
        "cosine_warmup_with_min_lr",
        {"W": 2, "T": 10, "min_lr": 1},
        [5, 10, 9.657458, 8.681981, 7.222075, 5.5, 3.777925, 2.318019, 1.342542, 1, 1.342542],
    ),
    (
        "cosine_warmup_with_min_lr",
        {"W": 4, "T": 10, "min_lr": 1, "warmup_lr_rate": 0.25},
        [2.5, 5, 7.5, 10, 9.397114, 7.75, 5.5, 3.25, 1.602886, 1],
    ),
    (
        "warmup_stable_decay",
        {"W": 2, "T": 10, "num_decay_steps": 2, "min_lr_ratio": 0},
        [0, 5, 10, 10, 10, 10, 10, 10, 10, 5, 0, 0],
    ),
    *(
        (
            "warmup_stable_decay",
            {"W": 3, "T": 12, "num_decay_steps": 4, "min_lr_ratio": 0.1}
            | {"warmup_type": kind, "decay_type": kind},
            warmup + [10] * 5 + decay + [1, 1],
        )
        for kind, warmup, decay in (
            ("linear", [1, 4, 7], [10, 7.75, 5.5, 3.25]),
            ("cosine", [1, 3.25, 7.75], [10, 8.681981, 5.5, 2.318019]),
            ("1-sqrt", [1, 2.651531, 4.803848], [10, 5.5, 3.636039, 2.205771]),
        )
    ),
    (
        "warmup_stable_decay",
        {"W": 0, "T": 6, "num_decay_steps": 4, "min_lr_ratio": 0.0001, "decay_type": "exp"},
        [10, 10, 10, 1, 0.1, 0.01, 0.001, 0.001],
    ),
]


@pytest.mark.parametrize(("name", "arguments", "expected"), TABLE)
def test_values_of_the_table(name, arguments, expected):
    scheduler = build(name, sgd(10.0), arguments)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
    assert advance(scheduler, len(expected)) == pytest.approx(expected, abs=1e-6)


def test_the_table_covers_every_schedule_of_the_step():
    covered = {name for name, _, _ in TABLE} | {"reduce_lr_on_plateau", "greedy"}
    assert covered == {member.value for member in schedules.SchedulerType}


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64)])
def test_plateau_halves_the_rate_when_the_metric_stalls(lr):
    optimizer = sgd(lr)
    scheduler = schedules.get_scheduler(
        "reduce_lr_on_plateau", optimizer, scheduler_specific_kwargs={"factor": 0.5, "patience": 1}
    )
    assert isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    rates = []
    for _ in range(6):
        scheduler.step(5.0)
        rates.append(float(optimizer.param_groups[0]["lr"]))
    assert rates == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]
    if isinstance(lr, torch.Tensor):
        assert optimizer.param_groups[0]["lr"] is lr  # filled in place, for captured graphs


def test_groups_keep_their_proportions():
    scheduler = schedules.get_linear_schedule_with_warmup(sgd(10.0, 1.0), 2, 4)
    assert advance(scheduler, 5) == [[0, 0], [5, 0.5], [10, 1], [5, 0.5], [0, 0]]
    scheduler = schedules.get_polynomial_decay_schedule_with_warmup(sgd(10.0, 1.0), 0, 2, 5.0)
    assert advance(scheduler, 3) == [[10, 1], [7.5, 0.75], [5, 0.5]]


# A schedule's arguments after the optimizer, without those that have a default.
WITH_START_RATIO = [
    ("constant_with_warmup", {"W": 4}),
    ("linear", {"W": 4, "T": 10}),
    ("cosine", {"W": 4, "T": 10}),
    ("cosine_with_restarts", {"W": 4, "T": 10}),
    ("polynomial", {"W": 4, "T": 10}),
    ("inverse_sqrt", {"W": 4}),
    ("cosine_with_min_lr", {"W": 4, "T": 10, "min_lr": 1.0}),
    ("warmup_stable_decay", {"W": 4, "T": 10, "num_decay_steps": 3, "min_lr_ratio": 0.1}),
]


@pytest.mark.parametrize(("name", "arguments"), WITH_START_RATIO)
def test_warmup_start_ratio_lifts_the_warmup_only(name, arguments):
    plain = advance(build(name, sgd(10.0), arguments), 14)
    lifted = advance(build(name, sgd(10.0), {**arguments, "warmup_start_ratio": 0.2}), 14)
    assert lifted[:4] == pytest.approx([2, 4, 6, 8])
    assert lifted[4:] == plain[4:]
    assert plain[0] == (1.0 if name == "warmup_stable_decay" else 0.0)


@pytest.mark.parametrize("name", ["cosine", "cosine_with_min_lr", "cosine_warmup_with_min_lr"])
@pytest.mark.parametrize("num_cycles", [0.5, 0.25])
def test_hold_final_lr_keeps_the_value_at_the_end(name, num_cycles):
    arguments = {"W": 2, "T": 10, "num_cycles": num_cycles}
    if name != "cosine":
        arguments["min_lr"] = 1.0
    end = 9 if name == "cosine_warmup_with_min_lr" else 10
    free = advance(build(name, sgd(10.0), arguments), 16)
    held = advance(build(name, sgd(10.0), {**arguments, "hold_final_lr": True}), 16)
    assert held[: end + 1] == free[: end + 1]
    assert held[end:] == [held[end]] * (16 - end)
    assert free[end + 1] != free[end]


def test_hold_final_lr_without_a_decay_phase_drops_to_the_minimum_once():
    scheduler = schedules.get_cosine_schedule_with_warmup(sgd(10.0), 2, 2, hold_final_lr=True)
    assert advance(scheduler, 6) == [0, 5, 10, 0, 0, 0]


@pytest.mark.parametrize("steps", [0, 5])
def test_polynomial_needs_steps_to_decay_in(steps):
    with pytest.raises(ValueError, match="num_training_steps and num_warmup_steps are both"):
        schedules.get_polynomial_decay_schedule_with_warmup(sgd(10.0), steps, steps)


def test_wsd_refuses_phases_longer_than_the_training():
    with pytest.raises(ValueError, match=r"num_decay_steps \(100\) exceed .*>= 110"):
        schedules.get_wsd_schedule(sgd(10.0), 10, 100, 50)
    with pytest.raises(ValueError, match="num_training_steps"):
        schedules.get_wsd_schedule(sgd(10.0), 1, 2, 2)
    # One step longer there is no stable phase at all, which is fine.
    assert advance(schedules.get_wsd_schedule(sgd(10.0), 1, 2, 3), 4)[:2] == [0, 10]


def test_wsd_exp_needs_a_ratio_and_is_no_warmup():
    with pytest.raises(ValueError, match="min_lr_ratio > 0"):
        schedules.get_wsd_schedule(sgd(10.0), 1, 2, 9, decay_type="exp")
    with pytest.raises(ValueError, match="warmup_type is 'exp'"):
        schedules.get_wsd_schedule(sgd(10.0), 1, 2, 9, warmup_type="exp", min_lr_ratio=0.1)


NO_LR = [*WITH_START_RATIO, ("constant", {}), ("reduce_lr_on_plateau", {})]
NO_LR += [("cosine_warmup_with_min_lr", {"W": 4, "T": 10, "min_lr": 1.0})]


@pytest.mark.parametrize(("name", "arguments"), NO_LR)
def test_a_missing_learning_rate_names_the_remedy(name, arguments):
    optimizer = sgd(10.0, 1.0)
    optimizer.param_groups[1]["lr"] = None
    with pytest.raises(TypeError, match=r"param_groups\[1\].* AdafactorSchedule\(optimizer\)"):
        build(name, optimizer, arguments)
    optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] = None
    with pytest.raises(TypeError, match="AdafactorSchedule"):
        build(name, optimizer, arguments)


def test_the_base_rate_of_an_earlier_schedule_does():
    optimizer = sgd(10.0)
    optimizer.param_groups[0].update(lr=None, initial_lr=8.0)  # torch takes this one, if there
    assert schedules.get_linear_schedule_with_warmup(optimizer, 0, 2).get_last_lr() == [8.0]


@pytest.mark.parametrize(("name", "arguments", "expected"), TABLE)
def test_a_tensor_learning_rate_is_filled_in_place(name, arguments, expected):
    lr = torch.tensor(10.0, dtype=torch.float64)
    optimizer = sgd(lr)
    scheduler = build(name, optimizer, arguments)
    assert advance(scheduler, len(expected)) == pytest.approx(expected, abs=1e-6)
    assert optimizer.param_groups[0]["lr"] is lr
    # torch keeps that very tensor in `defaults` too: a second schedule starts from 10 all the same.
    again = build(name, optimizer, arguments)
    assert advance(again, len(expected)) == pytest.approx(expected, abs=1e-6)


def test_public_names():
    assert set(schedules.__all__) == {
        *("AdafactorSchedule", "GreedyLR", "PolynomialDecay", "SchedulerType", "WarmUp"),
        *("get_adafactor_schedule", "get_constant_schedule", "get_constant_schedule_with_warmup"),
        *("get_cosine_schedule_with_warmup", "get_cosine_with_hard_restarts_schedule_with_warmup"),
        "get_cosine_with_min_lr_schedule_with_warmup",
        "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
        *("get_greedy_schedule", "get_inverse_sqrt_schedule", "get_linear_schedule_with_warmup"),
        *("get_polynomial_decay_schedule_with_warmup", "get_reduce_on_plateau_schedule"),
        *("get_scheduler", "get_wsd_schedule", "num_optimizer_steps"),
    }
    assert all(callable(getattr(schedules, name)) for name in schedules.__all__)
