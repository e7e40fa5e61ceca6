"""GreedyLR against transformers' own, value for value."""

import copy
import inspect
import io
import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from schedule_cases import sgd

import fused_optim
from fused_optim.schedules import GreedyLR, get_greedy_schedule, get_scheduler

theirs = pytest.importorskip("transformers.optimization")
if not hasattr(theirs, "GreedyLR"):
    pytest.skip("needs transformers 5 to compare with", allow_module_level=True)

STEPS = 400
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


def metrics(seed, count=STEPS):
    """A noisy curve that falls and rises again, with runs of equal values and a few odd ones."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, generator=generator, dtype=torch.float64)
    curve = [math.cos(step / 25) + 0.3 * noise[step].item() for step in range(count)]
    for step in range(0, count - 12, 40):
        curve[step : step + 12] = [2.0 - step / count - 0.01 * k for k in range(12)]
    curve[-20], curve[-10] = math.nan, -math.inf
    return curve


def both(options, new_optimizer=lambda: sgd(0.5, 0.25)):
    return [make(new_optimizer(), **options) for make in (GreedyLR, theirs.GreedyLR)]


def seen(scheduler):
    """What a scheduler shows after a step, its whole state included."""
    rates = [group["lr"] for group in scheduler.optimizer.param_groups]
    return repr([rates, scheduler.get_last_lr(), scheduler.state_dict()])


def history(scheduler, sequence):
    result = []
    for metric in sequence:
        scheduler.step(metric)
        result.append([float(group["lr"]) for group in scheduler.optimizer.param_groups])
    return result


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


def test_a_float32_tensor_arrives_at_a_bound_that_it_rounds():
    """0.1 is larger in float32: compared in float64, the rate would never be at its bound."""
    scheduler = GreedyLR(
        sgd(torch.tensor(0.5)), patience=0, factor=0.5, min_lr=0.1, reset_start=1, eps=0.0
    )
    history(scheduler, [1.0] * 5)
    assert scheduler.optimizer.param_groups[0]["lr"] == torch.tensor(0.5)


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
    before = seen(scheduler)
    with pytest.raises(ValueError, match=r"optimizer with 2 parameter groups, and this one has 1"):
        scheduler.load_state_dict(GreedyLR(sgd(0.1, 0.2), patience=0).state_dict())
    assert seen(scheduler) == before


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
    assert isinstance(GreedyLR(sgd(0.5)), torch.optim.lr_scheduler.ReduceLROnPlateau)
