"""What holds for the schedules whatever their arguments, and the examples in their docstrings."""

import doctest
import importlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fused_optim import schedules
from fused_optim.schedules import lambdas

counts = st.integers(1, 60)


@given(warmup=counts, decay=counts, minimum=st.floats(0, 1), extra=st.integers(0, 40))
def test_decays_stay_in_bounds_and_never_rise(warmup, decay, minimum, extra):
    both = {"num_warmup_steps": warmup, "num_training_steps": warmup + decay}
    end = {
        lambdas.linear_with_warmup: (both, 0.0),
        lambdas.cosine_with_warmup: (
            both | {"min_lr_rate": minimum, "hold_final_lr": True},
            minimum,
        ),
        lambdas.polynomial_decay: (both | {"lr_init": 2.0, "lr_end": 2.0 * minimum}, minimum),
        lambdas.warmup_stable_decay: (
            {"num_warmup_steps": warmup, "num_decay_steps": decay, "num_stable_steps": extra}
            | {"min_lr_ratio": minimum, "warmup_start_ratio": minimum},
            minimum,
        ),
    }
    for factor, (arguments, last) in end.items():
        values = [factor(step, **arguments) for step in range(warmup + decay + extra + 2)]
        for before, after in zip(values[:warmup], values[1 : warmup + 1], strict=True):
            assert before <= after + 1e-12
        for before, after in zip(values[warmup:], values[warmup + 1 :], strict=False):
            assert after <= before + 1e-12
        assert values[warmup] == pytest.approx(1.0)
        assert values[-1] == pytest.approx(last, abs=1e-12)
        assert all(0.0 <= value <= 1.0 + 1e-12 for value in values)


@given(warmup=st.integers(1, 50), decay=st.integers(2, 50), start=st.floats(0, 1))
def test_phases_meet_without_a_jump(warmup, decay, start):
    """As real functions of the step, with the two sides of a boundary a millionth apart."""
    both = {"num_warmup_steps": warmup, "num_training_steps": warmup + decay}
    lifted = {"warmup_start_ratio": start}
    wsd = {"num_warmup_steps": warmup, "num_stable_steps": 5, "num_decay_steps": decay}
    cases = [
        (lambdas.constant_with_warmup, {"num_warmup_steps": warmup, **lifted}),
        (lambdas.linear_with_warmup, both | lifted),
        (lambdas.cosine_with_warmup, both | lifted),
        (lambdas.cosine_with_hard_restarts, both | lifted),
        (lambdas.polynomial_decay, both | lifted | {"lr_init": 1.0}),
        (lambdas.inverse_sqrt, {"num_warmup_steps": warmup, "timescale": 7, **lifted}),
        *((lambdas.warmup_stable_decay, wsd | {"decay_type": t}) for t in ("linear", "cosine")),
        (lambdas.warmup_stable_decay, wsd | {"decay_type": "exp", "min_lr_ratio": 0.1}),
    ]
    for factor, arguments in cases:
        for boundary in (warmup, warmup + 5, warmup + decay, warmup + 5 + decay):
            left, right = (factor(boundary + side, **arguments) for side in (-1e-6, 1e-6))
            assert left == pytest.approx(right, abs=2e-5)


@given(
    examples=st.integers(0, 500),
    batch=st.integers(1, 9),
    epochs=st.integers(0, 3),
    accumulate=st.integers(1, 5),
    processes=st.integers(1, 4),
    drop_last=st.booleans(),
)
def test_num_optimizer_steps_counts_a_training_loop(
    examples, batch, epochs, accumulate, processes, drop_last
):
    steps = 0
    for _ in range(epochs):
        left, window = examples, 0
        while left > 0 and not (drop_last and left < batch * processes):
            left -= batch * processes
            window += 1
            if window == accumulate or left <= 0 or (drop_last and left < batch * processes):
                steps, window = steps + 1, 0
    counted = schedules.num_optimizer_steps(
        examples, batch, epochs, accumulate, processes, drop_last
    )
    assert counted == steps


def test_num_optimizer_steps_rounds_fractions_up_and_refuses_nonsense():
    assert schedules.num_optimizer_steps(100, 10, num_epochs=0.25) == 3
    for bad in ("batch_size", "gradient_accumulation_steps", "num_processes"):
        with pytest.raises(ValueError, match=bad):
            schedules.num_optimizer_steps(**{"num_examples": 10, "batch_size": 1, bad: 0})


@pytest.mark.parametrize(
    "module",
    [
        *("adafactor", "basic", "cosine", "dispatch", "greedy", "power", "steps", "tensorflow"),
        "wsd",
    ],
)
def test_docstring_examples_run(module):
    result = doctest.testmod(importlib.import_module(f"fused_optim.schedules.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
