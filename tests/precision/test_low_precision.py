"""What each precision mode promises: exact masters, no stall, external writes win, its memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    LOW_PRECISION,
    ONE_OF_EACH,
    Case,
    TensorCase,
    device_of,
    each_backend,
    each_backend_slowly,
    interpreted,
)
from parity import Bench
from stored import EXTRA, bits
from tolerances import assert_same_bits, dtype_name, ulp

import fused_optim
from fused_optim import torch_compat

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
each_case = pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
each_mode = pytest.mark.parametrize(
    ("dtype", "mode"), LOW_PRECISION, ids=[f"{dtype_name(d)}-{m}" for d, m in LOW_PRECISION]
)
KEEPING = [pair for pair in LOW_PRECISION if pair[1] in EXTRA]
each_keeping_mode = pytest.mark.parametrize(
    ("dtype", "mode"), KEEPING, ids=[f"{dtype_name(d)}-{m}" for d, m in KEEPING]
)


@each_backend
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
@each_case
def test_split_is_master(case: Case, state_dtype: torch.dtype, backend: str) -> None:
    """The same bits shown, and the same float32 value behind them, step after step."""
    few = interpreted(backend)
    shapes = [(2, 3) if few else (40, 30), (70,), ()]
    split, master = (
        Bench(
            case,
            [TensorCase(s, torch.bfloat16, mode, state_dtype=state_dtype) for s in shapes],
            backend,
        )
        for mode in ("split", "master")
    )
    for bench in (split, master):
        bench.randomise_params(-3, 1)
    for _ in range(3 if few else 60):
        for bench in (split, master):
            bench.set_gradients(-4, 1)
            bench.optimizer.step()
        for i, (p, q) in enumerate(zip(split.params, master.params, strict=True)):
            assert (bits(p) == bits(q)).all()
            assert_same_bits(split.value(i), master.optimizer.state[q]["master"])
            for key in split.optimizer.state[p].keys() - EXTRA.values():
                assert_same_bits(split.optimizer.state[p][key], master.optimizer.state[q][key], key)


# --- stalls ---------------------------------------------------------------------------------------


def drift(dtype: torch.dtype, mode: str, backend: str, steps: int) -> Any:
    """Return parameters after updates of 1e-4 each, the size of a learning rate."""
    p = torch.nn.Parameter(torch.ones(1024, dtype=dtype, device=device_of(backend)))
    optimizer = fused_optim.AdamW([p], lr=1e-4, eps=1e-12, low_precision=mode, backend=backend)
    p.grad = torch.ones_like(p)
    for _ in range(steps):
        optimizer.step()
    return p.detach().double().cpu()


def random_walk(dtype: torch.dtype, steps: int) -> float:
    """Return the standard deviation of stochastic rounding on the way down from 1."""
    spacing = ulp(1.0 - 1e-4 * np.arange(0.5, steps), dtype_name(dtype))
    share = 1e-4 / spacing % 1.0
    return float(np.sqrt(np.sum(spacing**2 * share * (1 - share))))


def check_drift(dtype: torch.dtype, mode: str, backend: str, steps: int) -> None:
    exact = 1.0 - steps * 1e-4
    p = drift(dtype, mode, backend, steps)
    step = float(ulp(0.75, dtype_name(dtype)))
    if mode == "nearest":
        stalls = 1e-4 < step / 2
        assert (p == 1.0).all() if stalls else (p < 1.0).all()
    elif mode == "stochastic":
        sigma = random_walk(dtype, steps)
        assert abs(p.mean().item() - exact) < 3 * sigma / p.numel() ** 0.5
        assert p.std().item() == pytest.approx(sigma, rel=0.1)
    else:
        assert (p - exact).abs().max().item() <= step


@each_backend_slowly
@each_mode
def test_small_updates_add_up(dtype: torch.dtype, mode: str, backend: str) -> None:
    check_drift(dtype, mode, backend, 1000)


@each_backend
@pytest.mark.long
@each_mode
def test_ten_thousand_small_updates_add_up(dtype: torch.dtype, mode: str, backend: str) -> None:
    """From 1 to 0, through all the binades between."""
    if interpreted(backend):
        pytest.skip("would take an hour in Triton's interpreter")
    if mode in EXTRA:
        end = drift(dtype, mode, backend, 10_000)
        assert end.abs().max().item() <= ulp(1.0, dtype_name(dtype))
    else:
        check_drift(dtype, mode, backend, 10_000)


@each_backend_slowly
@each_keeping_mode
def test_no_step_size_gets_stuck_at_a_midpoint(dtype: torch.dtype, mode: str, backend: str) -> None:
    """Steps of just under half an ulp put the compensation on a tie, from where it might fall."""
    step = float(ulp(1.0, dtype_name(dtype)))
    shares = 0.5 - 2.0 ** -np.arange(2.0, 18.0)
    groups = [
        {"params": [torch.full((8,), 1.5 + step, dtype=dtype, device=device_of(backend))], "lr": lr}
        for lr in step * np.concatenate([shares, shares / 2, shares / 4])
    ]
    optimizer = fused_optim.AdamW(groups, eps=0.0, low_precision=mode, backend=backend)
    for _ in range(16):
        for group in groups:
            group["params"][0].grad = torch.ones_like(group["params"][0])
        optimizer.step()
    for group in groups:
        exact = 1.5 + step - 16 * group["lr"]
        assert abs(group["params"][0][0].item() - exact) <= step


# --- bad values -----------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("pattern", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])
@each_mode
def test_nan_stays_nan(dtype: torch.dtype, mode: str, pattern: int, backend: str) -> None:
    """Rounded as integers, some NaN would come out as -0.0 or infinity."""
    p = torch.nn.Parameter(torch.ones(9, dtype=dtype, device=device_of(backend)))
    optimizer = fused_optim.AdamW(
        [p], low_precision=mode, state_dtype=torch.bfloat16, backend=backend
    )
    p.main_grad = torch.zeros(9, device=p.device)
    p.main_grad.view(torch.int32)[4] = int(np.uint32(pattern).view(np.int32))
    for _ in range(2):
        optimizer.step()
        state = optimizer.state[p]
        for tensor in (p, state["exp_avg"], state["exp_avg_sq"]):
            assert torch.isnan(tensor).nonzero().tolist() == [[4]]
        for key in {"remainder", "compensation"} & state.keys():
            assert state[key][4] == 0
        p.main_grad.zero_()


@each_backend
@pytest.mark.parametrize("mode", [m for d, m in LOW_PRECISION if d is torch.float16])
def test_float16_overflow_is_visible(mode: str, backend: str) -> None:
    """As infinity in the parameter; the master, where there is one, goes on."""
    p = torch.nn.Parameter(torch.full((64,), 65504.0, device=device_of(backend)).half())
    p.data[1::2] = 1.0
    optimizer = torch_compat.AdamW(
        [p], lr=100.0, weight_decay=0.0, low_precision=mode, backend=backend
    )
    p.grad = -torch.ones_like(p)
    optimizer.step()
    assert (p[::2] == torch.inf).all()
    assert torch.allclose(p[1::2].float(), torch.tensor(101.0, device=p.device), atol=0.1)
    if mode == "master":
        assert optimizer.state[p]["master"][0].item() == pytest.approx(65604.0)
        p.grad.neg_()
        for _ in range(40):
            optimizer.step()
        assert torch.isfinite(p).all()


@each_backend
@each_mode
def test_epsilon_is_never_a_16_bit_number(dtype: torch.dtype, mode: str, backend: str) -> None:
    """In float16 1e-8 is zero, and 0 / 0 is NaN; of 1 - 0.999 bfloat16 keeps two digits."""
    p = torch.nn.Parameter(torch.zeros(3, dtype=dtype, device=device_of(backend)))
    optimizer = torch_compat.AdamW(
        [p], lr=2.0**-4, weight_decay=0.0, low_precision=mode, state_dtype=FP16, backend=backend
    )
    p.main_grad = torch.tensor([0.0, 1e-8, 1.0], device=p.device)
    optimizer.step()
    # After one step of torch's AdamW: lr * g / (|g| + eps).
    expected = -(2.0**-4) * np.array([0.0, 0.5, 1.0])
    spacing = float(ulp(2.0**-4, dtype_name(dtype)))
    assert np.abs(p.detach().double().cpu().numpy() - expected).max() <= spacing


@each_backend
@each_mode
def test_denormal_numbers_are_kept(dtype: torch.dtype, mode: str, backend: str) -> None:
    """As second moments, and as parameters: flushed to zero, neither would move."""
    least = torch.tensor(torch.finfo(dtype).tiny * torch.finfo(dtype).eps, dtype=dtype)
    start = (least * 4).to(device_of(backend))
    p = torch.nn.Parameter(start.repeat(8))
    optimizer = fused_optim.AdamW(
        [p], lr=2.0 * least.item(), eps=0.0, low_precision=mode, backend=backend
    )
    p.main_grad = torch.tensor([1e-20, 1.0], device=p.device).repeat_interleave(4)
    optimizer.step()
    v = optimizer.state[p]["exp_avg_sq"][:4]
    assert (v > 0).all() and (v < torch.finfo(torch.float32).tiny).all()
    moved = (start - p.detach())[4:].float().cpu() / least.float()
    assert ((moved >= 1) & (moved <= 3)).all(), moved


# --- memory ---------------------------------------------------------------------------------------

BYTES: list[tuple[type, torch.dtype, dict[str, Any], float]] = [
    (fused_optim.AdamW, FP32, {}, 12),
    (fused_optim.AdamW, FP32, {"state_dtype": BF16}, 8),
    (fused_optim.AdamW, FP32, {"state_dtype": FP16}, 10),
    (fused_optim.AdamW, torch.float64, {"state_dtype": BF16, "low_precision": "kahan"}, 24),
    (fused_optim.AdamW, BF16, {}, 12),
    (fused_optim.AdamW, BF16, {"low_precision": "split"}, 12),
    (fused_optim.AdamW, BF16, {"low_precision": "kahan"}, 12),
    (fused_optim.AdamW, BF16, {"low_precision": "master"}, 14),
    (fused_optim.AdamW, BF16, {"low_precision": "nearest"}, 10),
    (fused_optim.AdamW, BF16, {"low_precision": "stochastic"}, 10),
    (fused_optim.AdamW, BF16, {"state_dtype": BF16}, 8),
    (fused_optim.AdamW, BF16, {"state_dtype": BF16, "low_precision": "stochastic"}, 6),
    (fused_optim.AdamW, BF16, {"state_dtype": None}, 8),
    (fused_optim.AdamW, FP16, {}, 14),
    (fused_optim.AdamW, FP16, {"low_precision": "kahan", "state_dtype": FP16}, 10),
    (fused_optim.AdamWeightDecay, BF16, {}, 12),
    (fused_optim.AdamWeightDecay, BF16, {"amsgrad": True}, 16),
    (torch_compat.AdamW, FP32, {}, 12),
    (torch_compat.AdamW, BF16, {}, 6),
    (torch_compat.AdamW, FP16, {}, 6),
    (torch_compat.AdamW, BF16, {"amsgrad": True}, 8),
    (torch_compat.Adam, BF16, {}, 6),
    (torch_compat.Adam, BF16, {"state_dtype": FP32, "low_precision": "split"}, 12),
    (fused_optim.Adafactor, FP32, {}, 4),
    (fused_optim.Adafactor, FP32, {"beta1": 0.9}, 8),
    (fused_optim.Adafactor, BF16, {}, 4),
    (fused_optim.Adafactor, BF16, {"low_precision": "stochastic"}, 2),
    (fused_optim.Adafactor, BF16, {"beta1": 0.9, "state_dtype": BF16}, 6),
    (fused_optim.Adafactor, FP16, {}, 6),
    (torch_compat.Adafactor, BF16, {}, 2),
    (torch_compat.Adafactor, FP32, {}, 4),
]
"""Bytes per parameter, itself included; Adafactor's for large matrices, whose statistics vanish."""


@pytest.mark.parametrize(("optimizer", "dtype", "options", "expected"), BYTES, ids=str)
def test_bytes_per_parameter(
    optimizer: type, dtype: torch.dtype, options: Any, expected: float
) -> None:
    p = torch.nn.Parameter(torch.ones(100, 200, dtype=dtype))
    opt = optimizer([p], **options)
    p.grad = torch.ones_like(p)
    opt.step()
    tensors = [p, *(t for t in opt.state[p].values() if isinstance(t, torch.Tensor))]
    per_parameter = sum(t.untyped_storage().nbytes() for t in tensors) / p.numel()
    assert expected <= per_parameter < expected + 0.1
