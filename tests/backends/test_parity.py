"""Every optimizer against its float64 oracle, through `step` itself: all modes and backends."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from cases import (
    DTYPE_MODES,
    ONE_OF_EACH,
    TABLES,
    Case,
    TensorCase,
    device_of,
    each_backend,
    each_backend_slowly,
    in_turns,
    interpreted,
    tensor_cases,
)
from parity import Bench
from stored import sample
from tolerances import as_float64, assert_step_close

import fused_optim
from fused_optim import torch_compat
from fused_optim.ops import FAMILIES

STEPS = (1, 2, 10, 1000)
TURNS = [turn for table in TABLES.values() for turn in enumerate(table)]
each_kind = pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)


def test_every_update_has_cases() -> None:
    assert set(TABLES) == set(FAMILIES) == {case.family for case in ONE_OF_EACH}
    for name, table in TABLES.items():
        assert {case.family for case in table} == {name}
    tested = {case.optimizer for case in ONE_OF_EACH}
    assert tested == {case.optimizer for _, case in TURNS} == set(fused_optim._OPTIMIZERS)


@each_backend
@pytest.mark.parametrize(("turn", "case"), TURNS, ids=str)
def test_one_step_from_stored_state(turn: int, case: Case, backend: str) -> None:
    bench = Bench(case, tensor_cases(turn, backend), backend, seed=turn)
    t = STEPS[turn % len(STEPS)]
    bench.randomise(t)
    bench.step_and_check(t, bench.set_gradients())


@each_backend
@each_kind
def test_trajectory(case: Case, backend: str) -> None:
    tensors = [
        TensorCase(shape, dtype, mode, None, state_dtype)
        for dtype, mode in DTYPE_MODES
        if mode != "nearest"
        for shape, state_dtype in (((500,), torch.float32), ((2, 10, 25), torch.bfloat16))
    ]
    tensors = in_turns(tensors, backend, ONE_OF_EACH.index(case), of=3)
    few = 10 if case.elementwise else 5
    Bench(case, tensors, backend).run_trajectory(few if interpreted(backend) else 50)


@each_backend
@each_kind
def test_each_parameter_counts_its_own_steps(case: Case, backend: str) -> None:
    bench = Bench(case, [TensorCase((2, 4), torch.float64)] * 3, backend)
    bench.randomise_params()
    exact = [(bench.value(i), {}, 0) for i in range(3)]
    for iteration in range(6):
        grads = bench.set_gradients(-1, 1)
        for i, g in enumerate(grads):
            if iteration % (i + 1):  # the second and third parameter are frozen at times
                bench.params[i].grad = None
                continue
            p, state, t = exact[i]
            exact[i] = (*case.step(p, g, state, t + 1, torch.float64), t + 1)
        bench.optimizer.step()
    for i, (p, _, t) in enumerate(exact):
        assert bench.optimizer.state[bench.params[i]]["step"] == t == 6 // (i + 1)
        assert_step_close(bench.params[i], p, 0.0, "float64")


# --- groups ---------------------------------------------------------------------------------------

# The oracle, and what each group overrides.
GROUPS: dict[type, tuple[Any, list[dict[str, Any]]]] = {
    fused_optim.AdamW: (
        oracle.adamw_transformers,
        [
            {"lr": 0.1},
            {"betas": (0.5, 0.6), "eps": 0.1},
            {"weight_decay": 0.3, "correct_bias": False},
            {"maximize": True},
        ],
    ),
    torch_compat.AdamW: (
        oracle.adamw_torch,
        [
            {"lr": 0.1, "maximize": True},
            {"betas": (0.5, 0.6), "weight_decay": 0.3},
            {"amsgrad": True, "eps": 0.1},
        ],
    ),
    torch_compat.Adam: (
        oracle.adam_torch,
        [{"lr": 0.1}, {"weight_decay": 0.1, "amsgrad": True}, {}],
    ),
    fused_optim.AdamWeightDecay: (
        oracle.adam_weight_decay_tf,
        [
            {"lr": 0.1},
            {"betas": (0.5, 0.6), "maximize": True},
            {"amsgrad": True, "eps": 0.1},
            {"weight_decay": 0.3},
        ],
    ),
    fused_optim.Adafactor: (
        oracle.adafactor,
        [
            {"lr": 0.1, "relative_step": False},
            {"warmup_init": True},
            {"scale_parameter": False, "weight_decay": 0.3},
            {"beta1": 0.9, "clip_threshold": 0.2},
            {"eps": (0.1, 3.0), "decay_rate": -0.3},
            {"maximize": True},
        ],
    ),
    torch_compat.Adafactor: (
        oracle.adafactor_torch,
        [
            {"lr": 0.5, "eps": (1e-3, 1e-3)},
            {"weight_decay": 0.3, "eps": (1e-2, 1.0)},
            {"d": 1.5, "beta2_decay": -0.3, "eps": (1e-3, 1e-3)},
            {"maximize": True, "eps": (1e-3, 1e-3)},
        ],
    ),
    fused_optim.Lion: (
        oracle.lion,
        [{"lr": 0.1}, {"betas": (0.5, 0.6)}, {"weight_decay": 0.3, "maximize": True}],
    ),
}
TENSORFLOW_NAMES = {"lr": "learning_rate", "eps": "epsilon", "weight_decay": "weight_decay_rate"}


def oracle_options(optimizer: type, group: dict[str, Any]) -> dict[str, Any]:
    """Return a group's options by the names that the oracle has."""
    options = dict(group)
    if optimizer is fused_optim.AdamWeightDecay:
        options = {TENSORFLOW_NAMES.get(name, name): value for name, value in options.items()}
        if "betas" in options:
            options["beta_1"], options["beta_2"] = options.pop("betas")
    return options


@each_backend
@pytest.mark.parametrize("optimizer", GROUPS, ids=lambda o: f"{o.__module__}.{o.__name__}")
def test_groups_override_every_option(optimizer: type, backend: str) -> None:
    step, groups = GROUPS[optimizer]
    rng, device = np.random.default_rng(0), device_of(backend)
    params = [torch.nn.Parameter(torch.randn(3, 2, device=device)) for _ in groups]
    given = [{"params": [p], **group} for p, group in zip(params, groups, strict=True)]
    opt = optimizer(given, backend=backend)
    opt.init_state()
    for t in range(1, 4):
        expected, details = [], [{} for _ in params]
        for p, group, detail in zip(params, groups, details, strict=True):
            p.grad = torch.from_numpy(sample(rng, (3, 2), -2, 1)).float().to(device)
            value, g = as_float64(p), as_float64(p.grad)
            state = {k: as_float64(v) for k, v in opt.state[p].items() if k != "step"}
            options = oracle_options(optimizer, group)
            expected.append(step(value, g, state, t, **options, details=detail)[0])
            detail["update"] = detail["update"] + np.abs(value) / 8
        opt.step()
        for p, value, detail in zip(params, expected, details, strict=True):
            assert_step_close(p, value, detail["update"], "float32", decays=True)


def test_groups_of_every_optimizer_are_overridden() -> None:
    assert set(GROUPS) == set(fused_optim._OPTIMIZERS)


# --- Adafactor alone ------------------------------------------------------------------------------


@each_backend_slowly
def test_large_tensors_use_every_tile(backend: str) -> None:
    """Shapes that backends cut into tiles: long rows, long columns, many matrices."""
    shapes = [(3, 70_000), (70_000, 3), (300, 700), (700, 5, 60), (2, 40_000, 2), (150_000,)]
    case = next(case for case in ONE_OF_EACH if case.family == "adafactor")
    for dtype, mode in ((torch.float32, "none"), (torch.bfloat16, "split")):
        bench = Bench(case, [TensorCase(shape, dtype, mode) for shape in shapes], backend)
        bench.randomise(5)
        bench.step_and_check(5, bench.set_gradients(-2, 0))


@each_backend
def test_default_epsilon_follows_each_parameters_dtype(backend: str) -> None:
    """torch lets the first parameter's dtype decide for all; here each has its own."""
    case = Case(torch_compat.Adafactor, oracle.adafactor_torch)
    tensors = [TensorCase((3, 2), dtype, mode) for dtype, mode in DTYPE_MODES]
    bench = Bench(case, tensors, backend)
    bench.randomise_params(-1, 0)
    bench.step_and_check(1, bench.set_gradients(-9, -4))  # small enough for the floor to act


@each_backend
def test_root_mean_square_is_kept_where_it_is_used(backend: str) -> None:
    case = Case(fused_optim.Adafactor, oracle.adafactor)
    for scale in (True, False):
        bench = Bench(case, [TensorCase((3, 4), torch.float32)], backend, scale_parameter=scale)
        bench.randomise_params()
        rms = math.sqrt(np.mean(bench.value(0) ** 2))
        bench.set_gradients()
        bench.optimizer.step()
        (state,) = bench.optimizer.state.values()
        assert state["RMS"].item() == pytest.approx(rms if scale else 0.0, rel=1e-6)
