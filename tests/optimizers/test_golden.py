"""The recorded trajectories of transformers, in torch and TensorFlow, through the real classes."""

from __future__ import annotations

from typing import Any

import golden_data
import numpy as np
import pytest
import torch
from cases import device_of, each_backend
from golden_data import TFCase, TorchCase
from tolerances import assert_within, ulp

import fused_optim

TORCH_CASES = golden_data.torch_cases()
FLOAT64 = [case for case in TORCH_CASES if case.dtype == "float64"]
# transformers' AdamW updates 16-bit parameters in 16 bits, which nobody should match; its Adafactor
# widens them to float32 and rounds the result.
ROUNDED = [
    case
    for case in TORCH_CASES
    if case.dtype == "float32" or (case.dtype != "float64" and case.optimizer == "Adafactor")
]
SIXTEEN_BIT_ADAMW = [
    case
    for case in TORCH_CASES
    if case.dtype in ("bfloat16", "float16") and case.optimizer == "AdamW"
]
TF_CASES = golden_data.tf_cases()


def ids(cases: list[Any]) -> list[str]:
    return [case.name for case in cases]


def start(case: TorchCase, backend: str) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    value = torch.from_numpy(np.asarray(golden_data.initial(case.shape)))
    param = torch.nn.Parameter(value.to(device_of(backend), getattr(torch, case.dtype)))
    optimizer = getattr(fused_optim, case.optimizer)
    return param, optimizer([param], low_precision="nearest", backend=backend, **case.kwargs)


def set_gradient(param: torch.nn.Parameter, t: int) -> None:
    grad = golden_data.gradient(t, tuple(param.shape))
    param.grad = torch.from_numpy(np.asarray(grad)).to(param.device, param.dtype)


def check_state(
    case: TorchCase, param: torch.nn.Parameter, optimizer: torch.optim.Optimizer, rtol: float
) -> None:
    state = optimizer.state[param]
    assert state["step"] == len(case.trajectory)
    for key, expected in case.state.items():
        if key == "RMS" and not case.kwargs.get("scale_parameter", True):
            continue  # kept up to date where it is used
        assert_within(state[key], expected, rtol * np.maximum(1.0, np.abs(expected)), key)


@each_backend
@pytest.mark.parametrize("case", FLOAT64, ids=ids(FLOAT64))
def test_float64(case: TorchCase, backend: str) -> None:
    param, optimizer = start(case, backend)
    for t, expected in enumerate(case.trajectory, 1):
        set_gradient(param, t)
        optimizer.step()
        assert_within(param, expected, 1e-12, f"step {t}")
    check_state(case, param, optimizer, 1e-12)


@each_backend
@pytest.mark.parametrize("case", ROUNDED, ids=ids(ROUNDED))
def test_rounded(case: TorchCase, backend: str) -> None:
    param, optimizer = start(case, backend)
    for t, expected in enumerate(case.trajectory, 1):
        before = param.detach().cpu().double().numpy()
        set_gradient(param, t)
        optimizer.step()
        moved = np.abs(expected - before)
        assert_within(param, expected, ulp(expected, case.dtype) + 1e-6 * moved, f"step {t}")
        with torch.no_grad():  # each step starts from the recorded parameter
            param.copy_(torch.from_numpy(np.asarray(expected)))
    # Recorded statistics are those of the rounded gradients, in float32.
    check_state(case, param, optimizer, 1e-6)


@each_backend
@pytest.mark.parametrize("case", SIXTEEN_BIT_ADAMW, ids=ids(SIXTEEN_BIT_ADAMW))
def test_sixteen_bit_adamw_stays_near(case: TorchCase, backend: str) -> None:
    """Not the same bits, but no further from transformers' than its own rounding errors."""
    param, optimizer = start(case, backend)
    for t, expected in enumerate(case.trajectory, 1):
        set_gradient(param, t)
        optimizer.step()
        assert_within(param, expected, 2 * t * ulp(1.0, case.dtype), f"step {t}")


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", TF_CASES, ids=ids(TF_CASES))
def test_tensorflow(case: TFCase, dtype: torch.dtype, backend: str) -> None:
    params = {}
    for name, shape in golden_data.TF_SHAPES.items():
        value = golden_data.initial(shape, golden_data.TF_SCALES[name])
        params[name] = torch.nn.Parameter(torch.from_numpy(value).to(device_of(backend), dtype))
    if case.name == "create_optimizer":
        optimizer, schedule = fused_optim.create_optimizer(
            params.items(), 0.1, 6, 2, min_lr_ratio=0.1, weight_decay_rate=0.1, backend=backend
        )
        assert [schedule(i) for i in range(8)] == pytest.approx(
            [golden_data.warmup_then_linear(i) for i in range(8)], rel=1e-12
        )
    else:
        optimizer = fused_optim.AdamWeightDecay(
            params.items(),
            learning_rate=0.1,
            exclude_from_weight_decay=list(case.excluded),
            backend=backend,
            **case.kwargs,
            **case.clip,
        )
    for t in range(1, case.steps + 1):
        for param in params.values():
            set_gradient(param, t)
        optimizer.step()
    for name, expected in case.expected.items():
        assert_within(params[name], expected, 1e-6, name)
