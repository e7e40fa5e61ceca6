"""Inputs that break careless kernels: extreme magnitudes and options, NaN and infinity."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    DTYPE_MODES,
    ONE_OF_EACH,
    Case,
    TensorCase,
    device_of,
    each_backend,
    in_turns,
)
from parity import MOMENTS, Bench
from reference_fp32 import adamw_update, reference_row
from stored import bits, write_bits_
from tolerances import as_float64, assert_same_bits, assert_within, ulp

import fused_optim
from fused_optim import torch_compat
from fused_optim.backends.eager import torch_fused

MAGNITUDES = (0.0, 1e-45, 1e-40, 1e-30, 1e-20, 1e-8, 1.0, 1e8, 1e18, 1e30, 1e38)
SIGNED = [sign * x for sign, x in itertools.product((1.0, -1.0), MAGNITUDES)]
BAD = [math.nan, math.inf, -math.inf]
LR = 0.75  # with weight decay 2, the parameter changes its sign
PAIRS = np.array(list(itertools.product(SIGNED, SIGNED)), np.float32)  # (parameter, gradient)

ADAM_FAMILY: dict[str, type] = {
    "transformers": fused_optim.AdamW,
    "torch_adamw": torch_compat.AdamW,
    "torch_adam": torch_compat.Adam,
    "tensorflow": fused_optim.AdamWeightDecay,
}


def construct(
    semantics: str, p: Any, backend: str, betas: Any, eps: float, decay: float
) -> torch.optim.Optimizer:
    optimizer = ADAM_FAMILY[semantics]
    if semantics == "tensorflow":
        names = {"learning_rate": LR, "beta_1": betas[0], "beta_2": betas[1], "epsilon": eps}
        return optimizer([p], weight_decay_rate=decay, backend=backend, **names)
    return optimizer([p], lr=LR, betas=betas, eps=eps, weight_decay=decay, backend=backend)


@each_backend
@pytest.mark.parametrize("plain", [False, True], ids=["", "plain"])
@pytest.mark.parametrize("semantics", ADAM_FAMILY)
@pytest.mark.parametrize("betas", [(0.0, 0.0), (0.9, 0.999), (1 - 1e-7, 1 - 1e-7)], ids=str)
@pytest.mark.parametrize("decay", [0.0, 2.0])
def test_extreme_magnitudes(
    semantics: str,
    betas: tuple[float, float],
    decay: float,
    plain: bool,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Overflow, underflow and division by zero happen where float32 says, and nowhere else."""
    if plain:
        if backend != "eager":
            pytest.skip("only eager has two paths")
        monkeypatch.setattr(torch_fused, "available", lambda: False)
    for eps in (0.0, 1e-8):
        p, g = PAIRS[:, 0], PAIRS[:, 1]
        m, v = np.zeros_like(p), np.zeros_like(p)
        param = torch.nn.Parameter(torch.from_numpy(p.copy()).to(device_of(backend)))
        optimizer = construct(semantics, param, backend, betas, eps, decay)
        for step in (1, 2):
            row = reference_row(semantics, LR, betas, optimizer.defaults["eps"], decay, step)
            p, m, v, _ = adamw_update(p, g, m, v, None, row)
            param.grad = torch.from_numpy(g.copy()).to(param.device)
            optimizer.step()
            # Divided by a subnormal number, a rounding error can be of any size.
            clear = row.eps > 0 or (v == 0) | (v > 1e-36)
            bound = np.where(clear, 4 * ulp(p, "float32") + 1e-6 * LR + 1e-30, np.inf)
            assert_within(param, p, bound, "parameter")
            for key, moment in (("exp_avg", m), ("exp_avg_sq", v)):
                assert_within(optimizer.state[param][key], moment, 4 * ulp(moment, "float32"), key)
            p = np.where(np.isfinite(p), p, np.float32(1))  # L2 would carry errors into moments
            write_bits_(param, p)


@each_backend
def test_beta1_of_zero_forgets(backend: str) -> None:
    """[W3] forgets an old moment to within its rounding, 2^-24 of the old one."""
    p = torch.nn.Parameter(torch.ones(4, device=device_of(backend)))
    optimizer = torch_compat.AdamW([p], betas=(0.0, 0.999), backend=backend)
    for scale in (1.0, 0.1, 10.0, 1e-3):
        old = optimizer.state[p].get("exp_avg", torch.zeros(())).abs().max().item()
        p.grad = torch.randn(4, device=p.device) * scale
        optimizer.step()
        kept = optimizer.state[p]["exp_avg"]
        assert_within(kept, p.grad, 2.0**-23 * (old + as_float64(p.grad.abs())), "exp_avg")


# --- NaN and infinity -----------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_bad_elements_corrupt_no_other_tensor(case: Case, bad: float, backend: str) -> None:
    """AdamW keeps them to their element, Adafactor to their tensor."""
    tensors = [
        TensorCase(shape, dtype, mode, None, state_dtype)
        for dtype, mode in DTYPE_MODES
        for state_dtype in (torch.float32, torch.bfloat16)
        for shape in ((3, 2), (5,))
    ]
    turn = 3 * ONE_OF_EACH.index(case) + BAD.index(bad)
    tensors = in_turns(tensors, backend, turn, of=12)
    clean, dirty = Bench(case, tensors, backend), Bench(case, tensors, backend)
    poisoned = range(0, len(tensors), 3)
    for step in range(3):
        for bench in (clean, dirty):
            if step == 0:
                bench.randomise_params(-1, 0)
            bench.set_gradients(-1, 0)
        if step == 1:
            for i in poisoned:
                dirty.params[i].grad.view(-1)[1] = bad
        for bench in (clean, dirty):
            bench.optimizer.step()
    for i, tensor in enumerate(tensors):
        p, q = as_float64(dirty.params[i]).ravel(), as_float64(clean.params[i]).ravel()
        if i not in poisoned:
            assert_same_bits(p, q, str(tensor))
        elif case.elementwise:
            moves = case.family == "lion" and np.isinf(bad)  # which has a sign
            assert np.isfinite(p[1]) == moves, tensor
            if np.isnan(bad):
                state = dirty.optimizer.state[dirty.params[i]]
                assert all(state[key].view(-1)[1].isnan() for key in MOMENTS if key in state)
            others = np.arange(p.size) != 1
            assert_same_bits(p[others], q[others], str(tensor))
        else:
            assert np.isnan(p).any(), tensor


@each_backend
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(3, 4), (5,)])
@pytest.mark.parametrize("case", [c for c in ONE_OF_EACH if c.family == "adafactor"], ids=str)
def test_adafactor_spreads_nan_as_its_peer(
    case: Case, shape: tuple[int, ...], bad: float, backend: str
) -> None:
    bench = Bench(case, [TensorCase(shape, torch.float64)], backend)
    bench.randomise(3)
    (g,) = bench.set_gradients(-1, 0)
    g.ravel()[1] = bad
    write_bits_(bench.params[0].grad, g)
    bench.step_and_check(3, [g])  # NaN and infinities must agree exactly


@each_backend
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_gradients_of_zero(case: Case, backend: str) -> None:
    """Also where whole rows or tensors never had another gradient."""
    tensors = [TensorCase(s, d, m) for d, m in DTYPE_MODES for s in ((3, 2), (5,), ())]
    tensors = in_turns(tensors, backend, ONE_OF_EACH.index(case), of=4)
    bench = Bench(case, tensors, backend)
    bench.randomise_params(-1, 0)
    for t in (1, 2, 3):
        grads = bench.set_gradients(-1, 0)
        for g, p in zip(grads, bench.params, strict=True):
            g[...] = 0.0 if t < 3 or g.ndim == 0 else np.where(np.arange(g.shape[-1]) > 0, g, 0.0)
            write_bits_(p.grad, bits(torch.from_numpy(g).to(p.dtype)))
        bench.step_and_check(t, grads)
    assert all(torch.isfinite(p).all() for p in bench.params)


@each_backend
def test_subnormal_parameters_train(backend: str) -> None:
    p = torch.nn.Parameter(torch.full((64,), 1e-39, device=device_of(backend)))
    optimizer = torch_compat.AdamW([p], lr=1e-40, weight_decay=0.0, backend=backend)
    for step in range(1, 6):
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert as_float64(p)[0] == pytest.approx(1e-39 - step * 1e-40, rel=1e-3)
