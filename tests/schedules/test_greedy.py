"""GreedyLR against transformers' own, value for value."""

import copy
import inspect
import io
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from schedule_cases import history, metrics, sgd

import fused_optim
from fused_optim.schedules import GreedyLR, get_greedy_schedule, get_scheduler

theirs = pytest.importorskip("transformers.optimization")
if not hasattr(theirs, "GreedyLR"):
    pytest.skip("needs transformers 5 to compare with", allow_module_level=True)

# Small patience and few steps to a reset, so that a sequence passes through all of it many times.
CASES = {
    "defaults": {},
    "impatient": {"patience": 0},
    "waits": {"patience": 1, "cooldown": 2, "warmup": 3, "factor": 0.7},
    "max": {"mode": "max", "patience": 1, "factor": 0.8},
    "max, resets": {
        **{"mode": "max", "patience": 0, "factor": 0.5},
        **{"min_lr": 0.1, "reset_start": 2},
    },
    "rel": {"threshold_mode": "rel", "threshold": 0.01, "patience": 1},
    "max, rel": {"mode": "max", "threshold_mode": "rel", "threshold": 0.01, "patience": 1},
    "abs": {"threshold": 0.05, "patience": 0},
    "bounds": {"patience": 0, "factor": 0.5, "min_lr": 0.2, "max_lr": 0.6, "reset_start": 10**9},
    "resets": {"patience": 0, "factor": 0.5, "min_lr": 0.1, "reset_start": 3, "cooldown": 1},
    "resets at once": {"patience": 0, "factor": 0.5, "min_lr": 0.1, "reset_start": 0},
    "bounds of groups": {"patience": 0, "min_lr": [0.2, 0.01], "max_lr": (0.5, 0.3)},
    "large eps": {"patience": 0, "factor": 0.9, "min_lr": 0.01, "eps": 0.02, "reset_start": 2},
    "smooth": {"smooth": True, "window_size": 5, "patience": 1},
    "smooth, resets": {
        **{"smooth": True, "window_size": 3, "patience": 0, "factor": 0.4},
        **{"min_lr": 0.1, "reset_start": 2, "warmup": 1, "verbose": True},
    },
    "rate below the lower bound": {"patience": 0, "min_lr": 0.45, "max_lr": 0.9, "factor": 0.8},
}
each = pytest.mark.parametrize("options", CASES.values(), ids=CASES)


def both(options, new_optimizer=lambda: sgd(0.5, 0.25)):
    return [make(new_optimizer(), **options) for make in (GreedyLR, theirs.GreedyLR)]


def seen(scheduler):
    """What a scheduler shows after a step, its whole state included."""
    rates = [group["lr"] for group in scheduler.optimizer.param_groups]
    return repr([rates, scheduler.get_last_lr(), scheduler.state_dict()])


@each
@pytest.mark.parametrize("seed", range(3))
def test_every_step_is_transformers(options, seed):
    ours, reference = both(options)
    assert seen(ours) == seen(reference)
    rates = set()
    for metric in metrics(seed):
        ours.step(metric)
        reference.step(metric)
        assert seen(ours) == seen(reference)
        rates.add(tuple(ours.get_last_lr()))
    assert len(rates) > 1 or options == {}


@given(
    data=st.data(),
    mode=st.sampled_from(["min", "max"]),
    threshold_mode=st.sampled_from(["abs", "rel"]),
    factor=st.floats(0.01, 0.99),
    counts=st.tuples(*[st.integers(0, 3)] * 4),
    window=st.one_of(st.none(), st.integers(1, 6)),
)
def test_any_options_and_metrics_are_transformers(
    data, mode, threshold_mode, factor, counts, window
):
    options = dict(zip(("patience", "cooldown", "warmup", "reset_start"), counts, strict=True))
    options |= {"mode": mode, "threshold_mode": threshold_mode, "factor": factor}
    options |= {"smooth": window is not None, "window_size": window or 50}
    options |= {"threshold": data.draw(st.floats(0, 0.2)), "min_lr": data.draw(st.floats(0, 0.4))}
    ours, reference = both(options)
    for metric in data.draw(st.lists(st.floats(width=32), max_size=40)):
        ours.step(metric)
        reference.step(metric)
        assert seen(ours) == seen(reference)


@each
@pytest.mark.parametrize("at", [0, 1, 37, 200])
@pytest.mark.parametrize("order", ["optimizer first", "schedule first"])
def test_states_move_between_transformers_and_us_and_resume(options, at, order):
    sequence = metrics(3)
    expected = history(both(options)[1], sequence)[at:]
    for source, target in itertools.product((0, 1), repeat=2):
        old = both(options)[source]
        history(old, sequence[:at])
        file = io.BytesIO()
        torch.save([old.optimizer.state_dict(), old.state_dict()], file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        history(old, sequence[at:])  # what was saved must not change with it
        new = both({})[target]  # the options are part of the state
        loads = [
            lambda new=new, saved=saved: new.optimizer.load_state_dict(saved[0]),
            lambda new=new, saved=saved: new.load_state_dict(saved[1]),
        ]
        for load in loads if order == "optimizer first" else loads[::-1]:
            load()
        assert history(new, sequence[at:]) == expected, (source, target)


def test_a_partial_state_leaves_the_rest():
    ours, reference = both({"patience": 1, "smooth": True, "window_size": 4})
    for scheduler in (ours, reference):
        history(scheduler, metrics(1)[:30])
        scheduler.load_state_dict({"best": 0.5, "_streaming_avg": {"values": [1.0], "sum": 1.0}})
        scheduler.load_state_dict({"cooldown": 2})
    assert history(ours, metrics(2)) == history(reference, metrics(2))


@pytest.mark.parametrize("name", ["resets", "bounds of groups", "smooth, resets"])
def test_tensor_rates_are_written_in_place(name):
    def new_optimizer():
        return sgd(*(torch.tensor(lr, dtype=torch.float64) for lr in (0.5, 0.25)))

    ours = both(CASES[name], new_optimizer)[0]
    reference = both(CASES[name])[1]
    tensors = [group["lr"] for group in ours.optimizer.param_groups]
    sequence = metrics(4)
    assert history(ours, sequence) == history(reference, sequence)
    saved = [copy.deepcopy(ours.optimizer.state_dict()), ours.state_dict()]
    history(ours, sequence)
    ours.load_state_dict(saved[1])
    assert [float(lr) for lr in tensors] == reference.get_last_lr()
    for group, lr in zip(ours.optimizer.param_groups, tensors, strict=True):
        assert group["lr"] is lr
    # What is reported stays what it was when it was reported.
    reported = ours.get_last_lr()
    values = [float(lr) for lr in reported]
    history(ours, sequence)
    assert [float(lr) for lr in reported] == values


def test_by_name_and_through_the_factory():
    options = {"patience": 1, "factor": 0.5, "mode": "max"}
    made = [
        get_scheduler("greedy", sgd(0.5), scheduler_specific_kwargs=options),
        get_scheduler(theirs.SchedulerType.GREEDY.value, sgd(0.5), 10, 100, options),
        get_greedy_schedule(sgd(0.5), **options),
        fused_optim.GreedyLR(sgd(0.5), **options),
    ]
    expected = history(theirs.get_scheduler("greedy", sgd(0.5), None, None, options), metrics(5))
    for scheduler in made:
        assert type(scheduler) is GreedyLR
        assert history(scheduler, metrics(5)) == expected
    assert history(get_scheduler("greedy", sgd(0.5)), metrics(5)) == history(
        theirs.GreedyLR(sgd(0.5)), metrics(5)
    )


def test_signatures_are_transformers():
    for name in ("__init__", "step"):
        ours, reference = (inspect.signature(getattr(c, name)) for c in (GreedyLR, theirs.GreedyLR))
        assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
            (p.name, p.kind, p.default) for p in reference.parameters.values()
        ]


def test_step_to_an_epoch_and_metrics_that_are_tensors():
    ours, reference = both({"patience": 0})
    for scheduler in (ours, reference):
        scheduler.step(torch.tensor(1.0), epoch=7)
        scheduler.step(torch.tensor([0.5]))
        assert scheduler.last_epoch == 8
    assert seen(ours) == seen(reference)
