"""The schedules against transformers' own, bit for bit."""

import inspect
import itertools
import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from schedule_cases import advance, build, sgd

from fused_optim import schedules

theirs = pytest.importorskip("transformers.optimization")
if not hasattr(theirs, "get_greedy_schedule"):
    pytest.skip("needs transformers 5 to compare with", allow_module_level=True)

WARMUPS = (0, 1, 2, 3, 7, 10, 2.5, -2)
LENGTHS = (0, 1, 2, 7, 10, 23)
KINDS = ("linear", "cosine", "1-sqrt")
BOTH = {"W": WARMUPS, "T": LENGTHS}

# name, the values of each argument (all combinations are tried).
GRIDS = [
    ("constant", {}),
    ("constant_with_warmup", {"W": (*WARMUPS, 0.5)}),
    ("linear", BOTH),
    ("cosine", {**BOTH, "num_cycles": (0.5, 1, 0.3, 2.75)}),
    ("cosine_with_restarts", {**BOTH, "num_cycles": (0, 1, 2, 1.5, 3)}),
    ("polynomial", {**BOTH, "lr_end": (1e-7, 1e-3), "power": (0, 0.5, 1.0, 2, 3.3)}),
    ("inverse_sqrt", {"W": (0, 1, 2, 3, 7, 10, 2.5), "timescale": (None, 1, 4, 100.5)}),
    ("cosine_with_min_lr", {**BOTH, "num_cycles": (0.5, 0.3), "min_lr": (1e-3, 0.2)}),
    ("cosine_with_min_lr", {**BOTH, "num_cycles": (0.5, 1), "min_lr_rate": (0, 0.1, -0.5)}),
    (
        "cosine_warmup_with_min_lr",
        {**BOTH, "num_cycles": (0.5, 0.3), "min_lr": (1e-3,), "warmup_lr_rate": (None, 0, 0.3)},
    ),
    (
        "warmup_stable_decay",
        {"W": (0, 3, 2.5), "num_stable_steps": (0, 4), "num_decay_steps": (0, 1, 5)}
        | {"warmup_type": KINDS, "decay_type": KINDS, "min_lr_ratio": (0, 0.1)}
        | {"num_cycles": (0.5, 0.3)},
    ),
    (
        "warmup_stable_decay",
        {"W": (0, 2), "T": (9, 30), "num_decay_steps": (0, 7), "min_lr_ratio": (0, 0.3)},
    ),
]


def bits(values):
    return [float(value).hex() for value in values]


def both(name, arguments, lr=0.3):
    """The two schedulers; None in place of one that its maker refuses, and the exceptions."""
    made, errors = [], []
    for get_scheduler in (schedules.get_scheduler, theirs.get_scheduler):
        try:
            made.append(build(name, sgd(lr), arguments, get_scheduler))
            errors.append(None)
        except Exception as error:
            made.append(None)
            errors.append(type(error))
    return made, errors


def is_refused_by_us_alone(name, arguments):
    return name == "polynomial" and arguments["W"] == arguments["T"]


@pytest.mark.parametrize(("name", "grid"), GRIDS)
def test_every_factor_has_transformers_bits(name, grid):
    compared = 0
    for values in itertools.product(*grid.values()):
        arguments = dict(zip(grid, values, strict=True))
        (ours, reference), errors = both(name, arguments)
        if is_refused_by_us_alone(name, arguments):
            assert errors[0] is ValueError
            continue
        assert errors[0] is errors[1], arguments
        if ours is None:
            continue
        # Past the last training step, past the end of a second wave, and far beyond.
        steps = [*range(60), 1000, 10**6 + 1]
        f, g = ours.lr_lambdas[0], reference.lr_lambdas[0]
        assert bits(map(f, steps)) == bits(map(g, steps)), arguments
        compared += 1
    assert compared >= 1


SAMPLES = [
    ("constant", {}),
    ("constant_with_warmup", {"W": 4}),
    ("linear", {"W": 3, "T": 11}),
    ("cosine", {"W": 3, "T": 11}),
    ("cosine_with_restarts", {"W": 3, "T": 11, "num_cycles": 2}),
    ("polynomial", {"W": 3, "T": 11, "power": 1.7}),
    ("inverse_sqrt", {"W": 3}),
    ("cosine_with_min_lr", {"W": 3, "T": 11, "min_lr": 1e-5}),
    ("cosine_warmup_with_min_lr", {"W": 3, "T": 11, "min_lr": 1e-5}),
    ("warmup_stable_decay", {"W": 3, "T": 11, "num_decay_steps": 4}),
]


@pytest.mark.parametrize(("name", "arguments"), SAMPLES)
@pytest.mark.parametrize("lrs", [(3e-4,), (0.1, 0.07, 1e-5)])
def test_every_rate_in_training_has_transformers_bits(name, arguments, lrs):
    ours, reference = (
        advance(build(name, sgd(*lrs), arguments, get_scheduler), 20)
        for get_scheduler in (schedules.get_scheduler, theirs.get_scheduler)
    )
    for rates, expected in zip(ours, reference, strict=True):
        assert bits(numpy.atleast_1d(rates)) == bits(numpy.atleast_1d(expected))


@given(
    sample=st.sampled_from(SAMPLES),
    warmup=st.integers(0, 10**6),
    length=st.integers(0, 10**7),
    position=st.floats(0, 2),
    cycles=st.floats(0, 20),
)
def test_long_schedules_have_transformers_bits(sample, warmup, length, position, cycles):
    name, arguments = sample
    arguments = dict(arguments)
    if "W" in arguments:
        arguments["W"] = warmup
    if "T" in arguments:
        arguments["T"] = length
    if name.startswith("cosine"):
        arguments["num_cycles"] = cycles
    if name == "warmup_stable_decay":
        arguments["T"] += warmup + arguments["num_decay_steps"]
    (ours, reference), errors = both(name, arguments)
    if is_refused_by_us_alone(name, arguments):
        return
    assert errors == [None, None]
    step = int(position * (warmup + length))
    assert bits([ours.lr_lambdas[0](step)]) == bits([reference.lr_lambdas[0](step)])


@pytest.mark.parametrize("name", [n for n in schedules.__all__ if n.startswith("get_")])
def test_positional_arguments_and_defaults_are_transformers(name):
    ours = inspect.signature(getattr(schedules, name)).parameters.values()
    reference = inspect.signature(getattr(theirs, name)).parameters.values()
    extras = [p for p in ours if p.kind is p.KEYWORD_ONLY]
    assert [(p.name, p.kind, p.default) for p in ours if p not in extras] == [
        (p.name, p.kind, p.default) for p in reference
    ]
    assert all(extra.default is not inspect.Parameter.empty for extra in extras)


BAD_CALLS = [
    ("greedy_or_not", {}),
    ("LINEAR", {"W": 1, "T": 2}),
    (None, {}),
    *((name, {}) for name, arguments in SAMPLES if "W" in arguments),
    *((name, {"W": 1}) for name, arguments in SAMPLES if "T" in arguments),
    *((name, {"T": 1}) for name, arguments in SAMPLES if "W" in arguments),
    *((name, {**arguments, "nonsense": 1}) for name, arguments in SAMPLES),
    *((name, {**arguments, "num_warmup_steps": 1}) for name, arguments in SAMPLES),
    *((name, {**arguments, "last_epoch": 3}) for name, arguments in SAMPLES),
    ("constant", {"W": 3, "T": 4}),
    ("reduce_lr_on_plateau", {"W": 3, "T": 4}),
    ("reduce_lr_on_plateau", {"factor": 1.0}),
    ("greedy", {"W": 3, "T": 4}),
    ("greedy", {"factor": 1.0}),
    ("greedy", {"mode": "least"}),
    ("greedy", {"threshold_mode": "relative"}),
    ("greedy", {"min_lr": [0.1, 0.2]}),
    ("greedy", {"max_lr": [0.1, 0.2]}),
    ("greedy", {"last_epoch": 3}),
    ("reduce_lr_on_plateau", {"nonsense": 1.0}),
    ("inverse_sqrt", {"W": 2, "T": 4, "num_training_steps": 3}),
    ("polynomial", {"W": 1, "T": 9, "lr_end": 0.3}),
    ("polynomial", {"W": 1, "T": 9, "lr_end": 1.0}),
    ("cosine_with_min_lr", {"W": 1, "T": 9}),
    ("cosine_with_min_lr", {"W": 1, "T": 9, "min_lr": 0.1, "min_lr_rate": 0.1}),
    ("cosine_warmup_with_min_lr", {"W": 1, "T": 9}),
    ("cosine_warmup_with_min_lr", {"W": 1, "T": 9, "min_lr": 0.1, "min_lr_rate": 0.1}),
    ("warmup_stable_decay", {"W": 1, "T": 9}),
    ("warmup_stable_decay", {"W": 1, "num_decay_steps": 2}),
    ("warmup_stable_decay", {"W": 1, "T": 9, "num_decay_steps": 2, "warmup_type": "step"}),
    ("warmup_stable_decay", {"W": 1, "T": 9, "num_decay_steps": 2, "decay_type": "step"}),
]


@pytest.mark.parametrize(("name", "arguments"), BAD_CALLS)
def test_get_scheduler_raises_what_transformers_raises(name, arguments):
    _, (ours, reference) = both(name, arguments)
    assert ours is reference


def test_some_bad_calls_are_refused_and_some_are_not():
    """Keeps the comparison above from passing because nothing, or everything, raises."""
    outcomes = {both(name, arguments)[1][0] for name, arguments in BAD_CALLS}
    assert outcomes == {None, TypeError, ValueError, KeyError}


@pytest.mark.parametrize("optimizer", [None, object(), torch.nn.Linear(1, 1)])
def test_what_is_no_optimizer_raises_what_transformers_raises(optimizer):
    for name, arguments in SAMPLES:
        errors = []
        for get_scheduler in (schedules.get_scheduler, theirs.get_scheduler):
            with pytest.raises(Exception) as caught:  # noqa: B017 PT011
                build(name, optimizer, arguments, get_scheduler)
            errors.append(caught.type)
        assert errors[0] is errors[1], name


def test_wsd_warns_where_transformers_does_and_prefers_the_stable_steps():
    factors = []
    for module in (schedules, theirs):
        with pytest.warns(UserWarning, match="num_stable_steps"):
            scheduler = module.get_wsd_schedule(sgd(), 2, 2, 100, 3)
        factors.append(bits(map(scheduler.lr_lambdas[0], range(12))))
    assert factors[0] == factors[1]


def test_names_are_transformers():
    names = {member.name: member.value for member in theirs.SchedulerType}
    assert {member.name: member.value for member in schedules.SchedulerType} == names
    for member in schedules.SchedulerType:
        assert member == member.value
        assert schedules.SchedulerType(theirs.SchedulerType(member.value)) is member
    with pytest.raises(ValueError, match="'greed' is not a valid SchedulerType.*inverse_sqrt"):
        schedules.get_scheduler("greed", sgd())


def test_every_schedule_of_transformers_is_there():
    public = {name for name in vars(theirs) if name.startswith("get_")} | {"GreedyLR"}
    assert public - set(schedules.__all__) == set()


@pytest.mark.parametrize("name", ["polynomial", "cosine_with_min_lr", "linear", "cosine"])
def test_state_moves_between_transformers_and_us(name):
    arguments = {"W": 3, "T": 11} | ({"min_lr": 0.1} if name == "cosine_with_min_lr" else {})
    makers = (schedules.get_scheduler, theirs.get_scheduler)
    expected = advance(build(name, sgd(), arguments), 16)[5:]
    for source, target in (makers, makers[::-1]):
        old = build(name, sgd(), arguments, source)
        advance(old, 5)
        new = build(name, sgd(), arguments, target)
        new.optimizer.load_state_dict(old.optimizer.state_dict())
        new.load_state_dict(old.state_dict())
        assert bits(advance(new, 11)) == bits(expected)


def test_the_comparison_sees_one_bit():
    assert bits([0.3]) != bits([math.nextafter(0.3, 1.0)])
