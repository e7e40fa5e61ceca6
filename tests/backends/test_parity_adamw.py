"""AdamW, Adam and AdamWeightDecay against the float64 oracles, through `step` itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import torch
from cases import (
    ADAMW,
    DTYPE_MODES,
    ONE_OF_EACH,
    Case,
    TensorCase,
    device_of,
    each_backend,
    in_turns,
    interpreted,
    tensor_cases,
)
from parity import Bench
from stored import sample
from tolerances import as_float64, assert_step_close

import fused_optim
from fused_optim import torch_compat

KINDS = [case for case in ONE_OF_EACH if case.family == "adamw"]
STEPS = (1, 2, 10, 1000)


@each_backend
@pytest.mark.parametrize(("turn", "case"), list(enumerate(ADAMW)), ids=str)
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
        for shape, state_dtype in (((500,), torch.float32), ((20, 25), torch.bfloat16))
    ]
    tensors = in_turns(tensors, backend, KINDS.index(case), of=3)
    Bench(case, tensors, backend).run_trajectory(10 if interpreted(backend) else 50)


# --- groups ---------------------------------------------------------------------------------------

# What a group overrides, and what the oracle calls it where it does not say the same.
GROUPS: dict[type, tuple[Any, list[tuple[dict[str, Any], dict[str, Any] | None]]]] = {
    fused_optim.AdamW: (
        oracle.adamw_transformers,
        [
            ({"lr": 0.1}, None),
            ({"betas": (0.5, 0.6), "eps": 0.1}, None),
            ({"weight_decay": 0.3, "correct_bias": False}, None),
            ({"maximize": True}, None),
        ],
    ),
    torch_compat.AdamW: (
        oracle.adamw_torch,
        [
            ({"lr": 0.1, "maximize": True}, None),
            ({"betas": (0.5, 0.6), "weight_decay": 0.3}, None),
            ({"amsgrad": True, "eps": 0.1}, None),
        ],
    ),
    torch_compat.Adam: (
        oracle.adam_torch,
        [({"lr": 0.1}, None), ({"weight_decay": 0.1, "amsgrad": True}, None), ({}, None)],
    ),
    fused_optim.AdamWeightDecay: (
        oracle.adam_weight_decay_tf,
        [
            ({"lr": 0.1}, {"learning_rate": 0.1}),
            ({"betas": (0.5, 0.6), "maximize": True}, {"beta_1": 0.5, "beta_2": 0.6}),
            ({"amsgrad": True, "eps": 0.1}, {"amsgrad": True, "epsilon": 0.1}),
            ({"weight_decay": 0.3}, {"weight_decay_rate": 0.3}),
        ],
    ),
}


@each_backend
@pytest.mark.parametrize("optimizer", GROUPS, ids=lambda o: f"{o.__module__}.{o.__name__}")
def test_groups_override_every_option(optimizer: type, backend: str) -> None:
    step, rows = GROUPS[optimizer]
    rng, device = np.random.default_rng(0), device_of(backend)
    params = [torch.nn.Parameter(torch.randn(3, 4, device=device)) for _ in rows]
    groups = [{"params": [p], **given} for p, (given, _) in zip(params, rows, strict=True)]
    opt = optimizer(groups, backend=backend)
    opt.init_state()
    for t in range(1, 4):
        expected, details = [], [{} for _ in params]
        for p, (given, renamed), detail in zip(params, rows, details, strict=True):
            p.grad = torch.from_numpy(sample(rng, (3, 4), -2, 1)).float().to(device)
            value, g = as_float64(p), as_float64(p.grad)
            state = {k: as_float64(v) for k, v in opt.state[p].items() if k != "step"}
            options = given if renamed is None else renamed
            options = {**options, "maximize": given.get("maximize", False)}
            expected.append(step(value, g, state, t, **options, details=detail)[0])
            detail["update"] += np.abs(value) / 8
        opt.step()
        for p, value, detail in zip(params, expected, details, strict=True):
            assert_step_close(p, value, detail["update"], "float32", decays=True)


@each_backend
def test_names_choose_what_decays(backend: str) -> None:
    names = ["encoder.weight", "encoder.bias", "LayerNorm.weight", "LayerNorm.special"]
    device = device_of(backend)
    params = [torch.nn.Parameter(torch.full((3,), 2.0, device=device)) for _ in names]
    optimizer = fused_optim.AdamWeightDecay(
        zip(names, params, strict=True),
        learning_rate=0.1,
        weight_decay_rate=0.5,
        include_in_weight_decay=["special$"],
        exclude_from_weight_decay=["LayerNorm", "bias"],
        backend=backend,
    )
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert [round(p[0].item(), 5) for p in params] == [1.9, 2.0, 2.0, 1.9]


@each_backend
@pytest.mark.parametrize("case", KINDS, ids=str)
def test_each_parameter_counts_its_own_steps(case: Case, backend: str) -> None:
    bench = Bench(case, [TensorCase((4,), torch.float64)] * 3, backend)
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
