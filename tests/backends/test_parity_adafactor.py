"""Both Adafactors against the float64 oracles, through `step` itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from cases import (
    ADAFACTOR,
    DTYPE_MODES,
    ONE_OF_EACH,
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

KINDS = [case for case in ONE_OF_EACH if case.family == "adafactor"]
STEPS = (1, 2, 10, 1000)


@each_backend
@pytest.mark.parametrize(("turn", "case"), list(enumerate(ADAFACTOR)), ids=str)
def test_one_step_from_stored_state(turn: int, case: Case, backend: str) -> None:
    bench = Bench(case, tensor_cases(turn, backend), backend, seed=turn)
    t = STEPS[turn % len(STEPS)]
    bench.randomise(t)
    bench.step_and_check(t, bench.set_gradients())


@each_backend
@pytest.mark.parametrize("case", KINDS, ids=str)
def test_trajectory(case: Case, backend: str) -> None:
    tensors = [
        TensorCase(shape, dtype, mode, None, state_dtype)
        for dtype, mode in DTYPE_MODES
        if mode != "nearest"
        for shape, state_dtype in (((500,), torch.float32), ((2, 10, 25), torch.bfloat16))
    ]
    tensors = in_turns(tensors, backend, KINDS.index(case), of=3)
    Bench(case, tensors, backend).run_trajectory(5 if interpreted(backend) else 50)


@each_backend_slowly
def test_large_tensors_use_every_tile(backend: str) -> None:
    """Shapes that backends cut into tiles: long rows, long columns, many matrices."""
    shapes = [(3, 70_000), (70_000, 3), (300, 700), (700, 5, 60), (2, 40_000, 2), (150_000,)]
    case = KINDS[0]
    for dtype, mode in ((torch.float32, "none"), (torch.bfloat16, "split")):
        bench = Bench(case, [TensorCase(shape, dtype, mode) for shape in shapes], backend)
        bench.randomise(5)
        bench.step_and_check(5, bench.set_gradients(-2, 0))


GROUPS: dict[type, tuple[Any, list[dict[str, Any]]]] = {
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
}


@each_backend
@pytest.mark.parametrize("optimizer", GROUPS, ids=lambda o: f"{o.__module__}.{o.__name__}")
def test_groups_override_every_option(optimizer: type, backend: str) -> None:
    step, overrides = GROUPS[optimizer]
    rng, device = np.random.default_rng(0), device_of(backend)
    params = [torch.nn.Parameter(torch.randn(3, 2, device=device)) for _ in overrides]
    groups = [{"params": [p], **o} for p, o in zip(params, overrides, strict=True)]
    opt = optimizer(groups, backend=backend)
    opt.init_state()
    for t in range(1, 4):
        expected, details = [], [{} for _ in params]
        for p, options, detail in zip(params, overrides, details, strict=True):
            p.grad = torch.from_numpy(sample(rng, (3, 2), -2, 1)).float().to(device)
            value, g = as_float64(p), as_float64(p.grad)
            state = {k: as_float64(v) for k, v in opt.state[p].items() if k != "step"}
            expected.append(step(value, g, state, t, **options, details=detail)[0])
            detail["update"] += np.abs(value) / 8
        opt.step()
        for p, value, detail in zip(params, expected, details, strict=True):
            assert_step_close(p, value, detail["update"], "float32", decays=True)


@each_backend
def test_default_epsilon_follows_each_parameters_dtype(backend: str) -> None:
    """torch lets the first parameter's dtype decide for all; here each has its own."""
    case = Case("adafactor", torch_compat.Adafactor, oracle.adafactor_torch)
    tensors = [TensorCase((3, 2), dtype, mode) for dtype, mode in DTYPE_MODES]
    bench = Bench(case, tensors, backend)
    bench.randomise_params(-1, 0)
    bench.step_and_check(1, bench.set_gradients(-9, -4))  # small enough for the floor to act


@each_backend
def test_root_mean_square_is_kept_where_it_is_used(backend: str) -> None:
    case = Case("adafactor", fused_optim.Adafactor, oracle.adafactor)
    for scale in (True, False):
        bench = Bench(case, [TensorCase((3, 4), torch.float32)], backend, scale_parameter=scale)
        bench.randomise_params()
        rms = math.sqrt(np.mean(bench.value(0) ** 2))
        bench.set_gradients()
        bench.optimizer.step()
        (state,) = bench.optimizer.state.values()
        assert state["RMS"].item() == pytest.approx(rms if scale else 0.0, rel=1e-6)


@each_backend
@pytest.mark.parametrize("case", KINDS, ids=str)
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
