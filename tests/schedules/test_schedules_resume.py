"""Saving, loading, pickling and resuming schedules."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from schedule_cases import advance, build, sgd

from fused_optim import schedules

CASES = [
    ("constant", {}),
    ("constant_with_warmup", {"W": 4}),
    ("linear", {"W": 3, "T": 11}),
    ("cosine", {"W": 3, "T": 11, "warmup_start_ratio": 0.1, "hold_final_lr": True}),
    ("cosine_with_restarts", {"W": 3, "T": 11, "num_cycles": 2}),
    ("polynomial", {"W": 3, "T": 11, "power": 1.7}),
    ("inverse_sqrt", {"W": 3}),
    ("cosine_with_min_lr", {"W": 3, "T": 11, "min_lr": 0.5}),
    ("cosine_warmup_with_min_lr", {"W": 3, "T": 11, "min_lr": 0.5}),
    ("warmup_stable_decay", {"W": 3, "T": 11, "num_decay_steps": 4}),
]
STEPS = 16
each = pytest.mark.parametrize(("name", "arguments"), CASES)


def through_a_file(state):
    """What a checkpoint holds: torch's own format, loaded with its safe loader."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@given(case=st.sampled_from(CASES), at=st.integers(0, STEPS - 1), tensor_lr=st.booleans())
def test_both_load_orders_continue_with_equal_rates(case, at, tensor_lr):
    def new_optimizer():
        return sgd(torch.tensor(10.0, dtype=torch.float64)) if tensor_lr else sgd(10.0)

    expected = advance(build(*case[:1], new_optimizer(), case[1]), STEPS)[at:]
    old = build(case[0], new_optimizer(), case[1])
    advance(old, at)
    saved = through_a_file([old.optimizer.state_dict(), old.state_dict()])

    constructed_first = build(case[0], new_optimizer(), case[1])
    constructed_first.optimizer.load_state_dict(copy.deepcopy(saved[0]))
    constructed_first.load_state_dict(copy.deepcopy(saved[1]))
    assert advance(constructed_first, STEPS - at) == expected

    optimizer = new_optimizer()
    optimizer.load_state_dict(copy.deepcopy(saved[0]))
    loaded_first = build(case[0], optimizer, case[1])
    loaded_first.load_state_dict(copy.deepcopy(saved[1]))
    assert advance(loaded_first, STEPS - at) == expected


@given(case=st.sampled_from(CASES), at=st.integers(1, STEPS - 1))
def test_last_epoch_resumes_without_a_saved_schedule(case, at):
    name, arguments = case
    if name in ("constant", "constant_with_warmup"):  # get_scheduler has no way to pass it on
        return
    expected = advance(build(name, sgd(), arguments), STEPS)[at:]
    old = build(name, sgd(), arguments)
    advance(old, at)
    optimizer = sgd()
    optimizer.load_state_dict(old.optimizer.state_dict())
    resumed = build(name, optimizer, {**arguments, "last_epoch": at - 1})
    assert advance(resumed, STEPS - at) == expected


def test_last_epoch_of_the_constant_schedules():
    for get, extra in (
        (schedules.get_constant_schedule, ()),
        (schedules.get_constant_schedule_with_warmup, (4,)),
    ):
        optimizer = sgd()
        advance(get(optimizer, *extra), 2)
        resumed = get(optimizer, *extra, 1)
        assert resumed.last_epoch == 2
        assert advance(resumed, 1) == [5.0 if extra else 10.0]


@each
def test_the_schedule_and_its_function_pickle(name, arguments):
    scheduler = build(name, sgd(), arguments)
    expected = advance(build(name, sgd(), arguments), STEPS)
    factor = pickle.loads(pickle.dumps(scheduler.lr_lambdas[0]))
    assert [10.0 * factor(step) for step in range(STEPS)] == expected
    advance(scheduler, 5)
    assert advance(pickle.loads(pickle.dumps(scheduler)), STEPS - 5) == expected[5:]


class Wrapped:
    """A callable whose attributes LambdaLR saves, around a schedule's own function."""

    def __init__(self, fn):
        self.fn = fn

    def __call__(self, *args):
        return self.fn(*args)


@each
def test_saving_halfway_changes_nothing(name, arguments):
    """As transformers tests it: every rate equal although the state went through a file at 5."""
    plain = advance(build(name, sgd(), arguments), 10)
    scheduler = build(name, sgd(), arguments)
    scheduler.lr_lambdas = [Wrapped(fn) for fn in scheduler.lr_lambdas]
    rates = advance(scheduler, 5)
    saved = pickle.loads(pickle.dumps(scheduler.state_dict()))
    scheduler.load_state_dict(saved)
    assert rates + advance(scheduler, 5) == plain


def test_a_wsd_decay_branches_off_a_long_stable_run():
    trunk = schedules.get_wsd_schedule(sgd(), 2, 4, num_stable_steps=10**6)
    advance(trunk, 7)
    # 2 steps of warm-up and 5 of the stable phase are behind it: decay from here.
    branch = schedules.get_wsd_schedule(sgd(), 2, 4, num_stable_steps=5, decay_type="linear")
    branch.optimizer.load_state_dict(trunk.optimizer.state_dict())
    branch.load_state_dict(trunk.state_dict())
    assert advance(branch, 5) == [10, 7.5, 5, 2.5, 0]
    assert advance(trunk, 5) == [10] * 5


def test_loading_fills_a_tensor_rate_in_place():
    old = build("linear", sgd(torch.tensor(10.0)), {"W": 2, "T": 10})
    advance(old, 4)
    lr = torch.tensor(10.0)
    new = build("linear", sgd(lr), {"W": 2, "T": 10})
    new.load_state_dict(old.state_dict())
    assert new.optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 7.5


def test_plateau_resumes():
    def rates(scheduler, metrics):
        seen = []
        for metric in metrics:
            scheduler.step(metric)
            seen.append(scheduler.optimizer.param_groups[0]["lr"])
        return seen

    metrics = [5.0, 4.0, 4.0, 4.0, 3.0, 3.0, 3.0]
    options = {"factor": 0.5, "patience": 1}
    expected = rates(schedules.get_reduce_on_plateau_schedule(sgd(), **options), metrics)
    old = schedules.get_reduce_on_plateau_schedule(sgd(), **options)
    rates(old, metrics[:3])
    new = schedules.get_reduce_on_plateau_schedule(sgd(), **options)
    new.optimizer.load_state_dict(old.optimizer.state_dict())
    new.load_state_dict(old.state_dict())
    assert rates(new, metrics[3:]) == expected[3:]
    assert expected[-1] < expected[2]
