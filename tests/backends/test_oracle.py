"""The oracles against the peers: recorded trajectories, and live runs of the real optimizers."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import golden_data
import numpy as np
import oracle
import pytest
import torch
import transformers
from golden_data import TFCase, TorchCase
from tolerances import assert_step_close, assert_within, ulp

ORACLES = {"AdamW": oracle.adamw_transformers, "Adafactor": oracle.adafactor}


def ids(cases: list[Any]) -> list[str]:
    return [case.name for case in cases]


# --- recorded trajectories -----------------------------------------------------------------------

FLOAT64 = [case for case in golden_data.torch_cases() if case.dtype == "float64"]
ROUNDED = [case for case in golden_data.torch_cases() if case.dtype != "float64"]


@pytest.mark.parametrize("case", FLOAT64, ids=ids(FLOAT64))
def test_golden_float64(case: TorchCase) -> None:
    p, state = golden_data.initial(case.shape), {}
    for t, expected in enumerate(case.trajectory, 1):
        g = golden_data.gradient(t, case.shape)
        p, state = ORACLES[case.optimizer](p, g, state, t, **case.kwargs)
        assert_within(p, expected, 4e-15, f"p at step {t}")
    assert state.keys() == case.state.keys()
    for key, expected in case.state.items():
        assert_within(state[key], expected, 4e-15 * np.maximum(1, np.abs(expected)), key)


# transformers' AdamW computes 16-bit parameters in 16 bits throughout, which nobody should match;
# its Adafactor widens to float32 and rounds the result.
WIDENED = [c for c in ROUNDED if c.dtype == "float32" or c.optimizer == "Adafactor"]


@pytest.mark.parametrize("case", WIDENED, ids=ids(WIDENED))
def test_golden_rounded(case: TorchCase) -> None:
    dtype = getattr(torch, case.dtype)

    def stored(x: np.ndarray) -> np.ndarray:
        return torch.from_numpy(np.asarray(x)).to(dtype).double().numpy()

    p, state = stored(golden_data.initial(case.shape)), {}
    for t, expected in enumerate(case.trajectory, 1):
        start, g = p, stored(golden_data.gradient(t, case.shape))
        p, state = ORACLES[case.optimizer](p, g, state, t, **case.kwargs)
        # float32 trajectories drift apart a little with every step; 16-bit ones restart from p.
        assert_within(expected, p, t * ulp(p, case.dtype) + 1e-6 * np.abs(p - start), f"step {t}")
        p = expected


TF_CASES = golden_data.tf_cases()


@pytest.mark.parametrize("case", TF_CASES, ids=ids(TF_CASES))
def test_golden_tensorflow(case: TFCase) -> None:
    shapes = golden_data.TF_SHAPES
    params = {n: golden_data.initial(shapes[n], golden_data.TF_SCALES[n]) for n in shapes}
    states: dict[str, Any] = {name: {} for name in shapes}
    for t in range(1, case.steps + 1):
        grads = _clip({n: golden_data.gradient(t, shapes[n]) for n in shapes}, **case.clip)
        for name, g in grads.items():
            kwargs = {"learning_rate": 0.1} | case.kwargs
            if name in case.excluded:
                kwargs["weight_decay_rate"] = 0.0
            params[name], states[name] = oracle.adam_weight_decay_tf(
                params[name], g, states[name], t, **kwargs
            )
    for name, expected in case.expected.items():
        assert_within(params[name], expected, 1e-6, name)


def _clip(
    grads: dict[str, np.ndarray],
    clipvalue: float | None = None,
    clipnorm: float | None = None,
    global_clipnorm: float | None = None,
) -> dict[str, np.ndarray]:
    if clipvalue is not None:
        grads = {n: oracle.clip_value(g, clipvalue) for n, g in grads.items()}
    if clipnorm is not None:
        grads = {n: oracle.clip_norm(g, clipnorm) for n, g in grads.items()}
    if global_clipnorm is not None:
        clipped = oracle.clip_global_norm_tf(list(grads.values()), global_clipnorm)
        grads = dict(zip(grads, clipped, strict=True))
    return grads


def test_golden_tensorflow_sparse() -> None:
    p, grads, expected = golden_data.tf_sparse_case()
    state: dict[str, np.ndarray] = {}
    for t, g in enumerate(grads, 1):
        p, state = oracle.adam_weight_decay_tf(
            p, g, state, t, learning_rate=0.1, weight_decay_rate=0.1
        )
    assert_within(p, expected, 1e-6, "embedding")


# --- live peers ----------------------------------------------------------------------------------

SHAPES = [(), (5,), (4, 3), (2, 3, 4), (2, 2, 3, 3), (2, 1, 2, 3, 2), (1, 4), (4, 1)]
EMPTY_SHAPES = [(0,), (0, 3), (3, 0)]


def run_live(
    optimizer: type[torch.optim.Optimizer],
    step: Callable[..., Any],
    shape: tuple[int, ...],
    kwargs: dict[str, Any],
    steps: int = 4,
) -> None:
    """Hold ``step`` to a real optimizer in float64, state tensors included."""
    rng = np.random.default_rng(hash(shape) % 1000)
    p, state = rng.normal(size=shape), {}
    param = torch.nn.Parameter(torch.from_numpy(np.array(p)))
    peer = optimizer([param], **kwargs)
    own = {k: v for k, v in kwargs.items() if k in inspect.signature(step).parameters}
    for t in range(1, steps + 1):
        g = rng.normal(size=shape) * 10.0 ** rng.integers(-3, 2)
        param.grad = torch.from_numpy(np.array(g))
        peer.step()
        details: dict[str, np.ndarray] = {}
        p, state = step(p, g, state, t, **own, details=details)
        assert_step_close(param, p, details["update"], "float64")
    for key, value in state.items():
        tensor = torch.as_tensor(peer.state[param][key]).double().numpy()
        assert_within(tensor, value, 1e-12 * np.maximum(1.0, np.abs(value)), key)


ADAFACTOR = [
    {},
    {"warmup_init": True},
    {"scale_parameter": False},
    {"lr": 0.03, "relative_step": False},
    {"lr": 0.03, "relative_step": False, "scale_parameter": False, "weight_decay": 0.1},
    {"beta1": 0.9, "weight_decay": -0.1},
    {"beta1": 0.0, "clip_threshold": 0.3},
    {"eps": (1e-3, 0.5), "decay_rate": -0.5, "clip_threshold": float("inf")},
]


@pytest.mark.parametrize("kwargs", ADAFACTOR, ids=str)
def test_adafactor_is_transformers(kwargs: dict[str, Any]) -> None:
    for shape in SHAPES:
        run_live(transformers.Adafactor, oracle.adafactor, shape, kwargs)
    for shape in EMPTY_SHAPES:  # no warm-up of the statistics there: they hold NaN
        run_live(transformers.Adafactor, oracle.adafactor, shape, kwargs, steps=2)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"lr": 0.7, "weight_decay": 0.1},
        {"beta2_decay": -0.5, "d": 2.0, "maximize": True},
        {"eps": (1e-2, 0.5), "weight_decay": 0.01},
    ],
    ids=str,
)
def test_adafactor_torch_is_torch(kwargs: dict[str, Any]) -> None:
    for shape in SHAPES:
        run_live(torch.optim.Adafactor, oracle.adafactor_torch, shape, kwargs)


ADAM = [
    {"weight_decay": wd, "amsgrad": amsgrad, "maximize": maximize, "lr": 0.1, **extra}
    for wd, amsgrad, maximize, extra in itertools.product(
        (0.0, 0.1), (False, True), (False, True), ({}, {"betas": (0.5, 0.6), "eps": 0.1})
    )
]


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_adam_is_torch(name: str) -> None:
    peer, step = getattr(torch.optim, name), getattr(oracle, f"{name.lower()}_torch")
    run_live(peer, step, (3, 4), {})
    for kwargs in ADAM:
        run_live(peer, step, (3, 4), kwargs)


# --- properties no trajectory shows --------------------------------------------------------------


def test_negative_decay_is_ignored_by_transformers_alone() -> None:
    p, g = np.ones(3), np.ones(3)
    ignored, _ = oracle.adamw_transformers(p, g, {}, 1, weight_decay=-1.0)
    plain, _ = oracle.adamw_transformers(p, g, {}, 1)
    assert (ignored == plain).all()
    grown, _ = oracle.adamw_torch(p, g, {}, 1, weight_decay=-1.0)
    assert (grown > plain).all()


def test_epsilon_zero_is_keras_default() -> None:
    p, g = np.ones(3), np.full(3, 1e-7)
    zero, _ = oracle.adam_weight_decay_tf(p, g, {}, 1, epsilon=0.0)
    default, _ = oracle.adam_weight_decay_tf(p, g, {}, 1)
    assert (zero == default).all()


def test_amsgrad_carries_nan() -> None:
    _, state = oracle.adam_torch(np.ones(2), np.array([np.nan, 1.0]), {}, 1, amsgrad=True)
    _, state = oracle.adam_torch(np.ones(2), np.ones(2), state, 2, amsgrad=True)
    assert np.isnan(state["max_exp_avg_sq"]).tolist() == [True, False]


def test_clip_grad_norm_is_torch() -> None:
    grads = [golden_data.gradient(t, (2, 3)) for t in (1, 3)]
    for limit in (0.5, 100.0):
        params = [torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.float64)) for _ in grads]
        for param, g in zip(params, grads, strict=True):
            param.grad = torch.from_numpy(g.copy())
        torch.nn.utils.clip_grad_norm_(params, limit)
        clipped = oracle.clip_global_norm_torch(grads, limit)
        for param, own in zip(params, clipped, strict=True):
            assert_within(param.grad, own, 1e-14, "gradient")


def test_oracles_leave_their_inputs_alone() -> None:
    p, g = golden_data.initial((2, 3)), golden_data.gradient(1, (2, 3))
    for step in (oracle.adamw_torch, oracle.adafactor, oracle.adafactor_torch):
        _, state = step(p, g, {}, 1)
        before = {k: v.copy() for k, v in state.items()}
        step(p, g, state, 2)
        assert all((state[k] == before[k]).all() for k in before)
    assert (p == golden_data.initial((2, 3))).all() and (g == golden_data.gradient(1, (2, 3))).all()
