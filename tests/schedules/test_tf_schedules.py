"""WarmUp and PolynomialDecay against the values that TensorFlow gives."""

import inspect
import math
import pickle
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fused_optim.schedules import PolynomialDecay, WarmUp, lambdas


def rates(schedule, steps):
    return [schedule(step) for step in range(steps)]


def warmup_then_decay(init=1.0, train=10, warmup=4, min_ratio=0.0, power=1.0):
    """What transformers' create_optimizer builds."""
    decay = PolynomialDecay(init, train - warmup, init * min_ratio, power)
    return WarmUp(init, decay, warmup) if warmup else decay


# As TensorFlow 2.15 evaluates them, in float32, from step 0 on.
TABLE = [
    (
        warmup_then_decay(),
        [0, 0.25, 0.5, 0.75, 1, 0.833333, 0.666667, 0.5, 0.333333, 0.166667, 0, 0],
    ),
    (warmup_then_decay(warmup=0), [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0, 0]),
    (
        warmup_then_decay(min_ratio=0.1, power=2.0),
        [0, 0.25, 0.5, 0.75, 1, 0.725, 0.5, 0.325, 0.2, 0.125, 0.1, 0.1],
    ),
    # More warm-up than training: the decay's length is negative, and it is over at once.
    (warmup_then_decay(train=2, warmup=4, min_ratio=0.1), [0, 0.25, 0.5, 0.75, 0.1, 0.1]),
    (WarmUp(8.0, PolynomialDecay(8.0, 2, 2.0), 4, power=2.0), [0, 0.5, 2, 4.5, 8, 5, 2, 2]),
    # The peak is WarmUp's own; a decay that starts elsewhere makes a jump.
    (WarmUp(8.0, PolynomialDecay(1.0, 2, 0.0), 2), [0, 4, 1, 0.5, 0, 0]),
    (WarmUp(8.0, PolynomialDecay(1.0, 2, 0.0), 0), [1, 0.5, 0, 0]),
    (
        PolynomialDecay(1.0, 4, 0.0, cycle=True),
        [1, 0.75, 0.5, 0.25, 0, 0.375, 0.25, 0.125, 0, 0.25],
    ),
    (PolynomialDecay(1.0, 2), [1, 0.50005, 0.0001, 0.0001]),
]


@pytest.mark.parametrize(("schedule", "expected"), TABLE)
def test_values(schedule, expected):
    values = rates(schedule, len(expected))
    assert values == pytest.approx(expected, abs=1e-6)
    assert {type(value) for value in values} == {float}


@pytest.mark.parametrize("cycle", [False, True])
def test_no_decay_steps_is_nan_as_in_tensorflow(cycle):
    schedule = PolynomialDecay(1.0, 0, cycle=cycle)
    assert all(math.isnan(value) for value in rates(schedule, 3))
    # Training that is all warm-up never gets there.
    assert rates(warmup_then_decay(train=4, warmup=4), 4) == [0, 0.25, 0.5, 0.75]
    assert math.isnan(warmup_then_decay(train=4, warmup=4)(4))


def test_signatures_are_tensorflows():
    def parameters(callable_):
        return [(p.name, p.default) for p in inspect.signature(callable_).parameters.values()]

    required = inspect.Parameter.empty
    assert parameters(WarmUp) == [
        ("initial_learning_rate", required),
        ("decay_schedule_fn", required),
        ("warmup_steps", required),
        ("power", 1.0),
        ("name", None),
    ]
    assert parameters(PolynomialDecay) == [
        ("initial_learning_rate", required),
        ("decay_steps", required),
        ("end_learning_rate", 0.0001),
        ("power", 1.0),
        ("cycle", False),
        ("name", None),
    ]


def test_get_config_holds_the_arguments():
    decay = PolynomialDecay(1.0, 4, 0.5, 2.0, True, "decay")
    assert decay.get_config() == {
        "initial_learning_rate": 1.0,
        "decay_steps": 4,
        "end_learning_rate": 0.5,
        "power": 2.0,
        "cycle": True,
        "name": "decay",
    }
    config = WarmUp(1.0, decay, 3, 2.0, "warm").get_config()
    assert config.pop("decay_schedule_fn") is decay
    assert config == {
        "initial_learning_rate": 1.0,
        "warmup_steps": 3,
        "power": 2.0,
        "name": "warm",
    }


@pytest.mark.parametrize(("schedule", "expected"), TABLE)
def test_pickle_and_config_give_the_same_schedule(schedule, expected):
    for copy in (pickle.loads(pickle.dumps(schedule)), type(schedule)(**schedule.get_config())):
        assert copy == schedule
        assert rates(copy, len(expected)) == rates(schedule, len(expected))


def test_any_callable_of_the_step_may_follow_the_warmup():
    cosine = partial(lambdas.cosine_with_warmup, num_warmup_steps=0, num_training_steps=4)
    schedule = pickle.loads(pickle.dumps(WarmUp(1.0, cosine, 2)))
    assert rates(schedule, 7) == pytest.approx([0, 0.5, 1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)


@given(
    peak=st.floats(1e-6, 1.0),
    ratio=st.floats(0.0, 1.0),
    warmup=st.integers(0, 50),
    decay=st.integers(1, 50),
    power=st.floats(0.1, 4.0),
)
def test_rises_to_the_peak_then_falls_to_the_end(peak, ratio, warmup, decay, power):
    schedule = warmup_then_decay(peak, warmup + decay, warmup, ratio, power)
    values = rates(schedule, warmup + decay + 3)
    slack = 1e-12 * peak
    assert values[warmup] == pytest.approx(peak)
    assert values[-3:] == pytest.approx([peak * ratio] * 3)
    assert all(a <= b + slack for a, b in zip(values[:warmup], values[1 : warmup + 1], strict=True))
    assert all(b <= a + slack for a, b in zip(values[warmup:-1], values[warmup + 1 :], strict=True))
