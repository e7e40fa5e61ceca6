"""Whole steps of the optimizers on Triton's kernels, beside the same steps on eager."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import fused_optim
from fused_optim import torch_compat
from fused_optim.backends import dispatch

pytest.importorskip("triton")

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="hands CPU tensors to kernels, which is the interpreter's"
)

SHAPES = [(7,), (0, 3), (3, 4), (2, 3, 2, 2), ()]
OPTIMIZERS = {
    "transformers": lambda p: fused_optim.AdamW(p, lr=1e-2, weight_decay=0.1, max_grad_norm=1.0),
    "torch": lambda p: torch_compat.Adam(p, lr=1e-2, weight_decay=0.1, amsgrad=True, maximize=True),
    "tensorflow": lambda p: fused_optim.AdamWeightDecay(p, 1e-2, clipnorm=0.5, clipvalue=0.9),
    "lion": lambda p: fused_optim.Lion(p, lr=1e-2, weight_decay=0.1, max_grad_norm=1.0),
    "adafactor": lambda p: fused_optim.Adafactor(p, beta1=0.9, max_grad_norm=1.0),
    "torch adafactor": lambda p: torch_compat.Adafactor(p, lr=1e-1, weight_decay=0.1),
}


def train(make, steps: int) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
    torch.manual_seed(1)
    params = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        params += [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    params[3].data = params[3].data.contiguous(memory_format=torch.channels_last)
    optimizer = make(params)
    for step in range(steps):
        for i, param in enumerate(params):
            grad = torch.randn(param.shape).to(param.dtype)
            if i == 2:
                grad = grad[:1].expand(param.shape)
            param.grad = grad if (i, step) != (0, 1) else None
        params[7].main_grad = params[7].grad.double()
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_equal_eager(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 2 if "adafactor" in name else 3
    expected, reference = train(OPTIMIZERS[name], steps)
    monkeypatch.setenv(dispatch.TEST_VARIABLE, "triton")
    params, optimizer = train(OPTIMIZERS[name], steps)
    assert optimizer._plans
    for param, other in zip(params, expected, strict=True):
        ulp = torch.finfo(param.dtype).eps
        sixteen_bit = param.dtype in (torch.bfloat16, torch.float16)
        # A value between two 16-bit ones may fall to either; random bits are the same on both.
        rtol = 2 * ulp if sixteen_bit else 1e-5
        torch.testing.assert_close(param, other, rtol=rtol, atol=1e-6)
        assert optimizer.state[param]["step"] == reference.state[other]["step"]
        for key, value in optimizer.state[param].items():
            if isinstance(value, torch.Tensor) and value.dtype is torch.float32 and key != "master":
                torch.testing.assert_close(value, reference.state[other][key], rtol=1e-4, atol=1e-6)


def test_grad_scaler_values_reach_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for backend in ("eager", "triton"):
        monkeypatch.setenv(dispatch.TEST_VARIABLE, backend)
        torch.manual_seed(2)
        param = torch.nn.Parameter(torch.randn(9).half())
        optimizer = fused_optim.AdamW([param], lr=0.1)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(256.0), torch.tensor(0.0)
        for _ in range(2):
            param.grad = (256 * torch.randn(9)).half()
            optimizer.step()
        stopped = param.clone()
        optimizer.found_inf = torch.tensor(1.0)
        optimizer.step()
        assert torch.equal(param, stopped) and optimizer.state[param]["step"] == 2
        results.append(stopped)
    torch.testing.assert_close(*results, rtol=2**-9, atol=0.0)


def test_eager_can_still_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.TEST_VARIABLE, "triton")
    _, optimizer = train(lambda p: fused_optim.AdamW(p, backend="eager"), steps=1)
    assert not optimizer._plans
    monkeypatch.delenv(dispatch.TEST_VARIABLE)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="torch sees no GPU"):
            fused_optim.AdamW([torch.nn.Parameter(torch.ones(1))], backend="triton")


def test_cpu_tensors_without_the_interpreter_get_our_own_error() -> None:
    code = """
import torch
from fused_optim import AdamW
p = torch.nn.Parameter(torch.zeros(4))
p.grad = torch.zeros(4)
try:
    AdamW([p]).step()
except RuntimeError as error:
    print(error)
"""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env[dispatch.TEST_VARIABLE] = "triton"
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "TRITON_INTERPRET=1" in run.stdout, run.stderr
