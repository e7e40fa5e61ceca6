"""Clipping inside the step, and what a gradient scaler hands to it, against torch and Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPE_MODES, ONE_OF_EACH, Case, TensorCase, each_backend, in_turns
from oracle import (
    clip_coefficient_torch,
    clip_global_norm_tf,
    clip_global_norm_torch,
    clip_norm,
    clip_value,
    global_norm,
)
from parity import Bench, assert_same_benches, step_both
from stored import bits
from tolerances import assert_same_bits, assert_step_close, assert_within, dtype_name, ulp

import fused_optim

FLOAT64 = [TensorCase(s, torch.float64) for s in ((3, 4), (7,), (), (0,), (2, 3, 2), (0, 3))]
MIXED = [
    TensorCase(shape, dtype, mode, grad_dtype)
    for dtype, mode in DTYPE_MODES
    if dtype is not torch.float64
    for shape in ((3, 2), (7,), (2, 0))
    for grad_dtype in (torch.float32, torch.bfloat16)
]
SIXTEEN_BIT = [
    TensorCase(shape, dtype, mode)
    for dtype, mode in DTYPE_MODES
    if mode != "none"
    for shape in ((3, 2), (7,))
]
each_case = pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)


def raw_gradient(p: torch.nn.Parameter) -> torch.Tensor:
    return p.grad if p.main_grad is None else p.main_grad


# --- max_grad_norm --------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("limit", [0.0, 0.5, 1e9])
@each_case
def test_equals_clipping_before_the_step(case: Case, limit: float, backend: str) -> None:
    fused, plain = Bench(case, FLOAT64, backend, max_grad_norm=limit), Bench(case, FLOAT64, backend)
    assert fused.optimizer.grad_norm is None
    for bench in (fused, plain):
        bench.randomise_params(-1, 0)
    for _ in range(4):
        for bench in (fused, plain):
            bench.set_gradients(-1, 1)
        norm = torch.nn.utils.clip_grad_norm_(plain.params, limit)
        for bench in (fused, plain):
            bench.optimizer.step()
        assert fused.optimizer.grad_norm.shape == ()
        assert fused.optimizer.grad_norm.item() == pytest.approx(norm.item(), rel=1e-12)
    for p, q in zip(fused.params, plain.params, strict=True):
        assert_step_close(p, q, 1.0, "float64")
    assert plain.optimizer.grad_norm is None


@each_backend
@each_case
def test_clips_every_dtype_together(case: Case, backend: str) -> None:
    tensors = in_turns(MIXED, backend, ONE_OF_EACH.index(case), of=5)
    bench = Bench(case, tensors, backend, max_grad_norm=0.5)
    bench.randomise(3)
    grads = bench.set_gradients(-2, 1)
    stored = [raw_gradient(p).clone() for p in bench.params]
    before = bench.snapshots()
    bench.optimizer.step()
    norm = bench.optimizer.grad_norm.item()
    assert norm == pytest.approx(global_norm(grads), rel=1e-6)
    # The coefficient as the step has it: its own error is not that of the update.
    coefficient = np.float32(0.5) / (np.float32(norm) + np.float32(1e-6))
    bench.check(3, before, [np.float32(g * coefficient).astype(np.float64) for g in grads])
    for p, grad in zip(bench.params, stored, strict=True):
        assert torch.equal(raw_gradient(p), grad), "a gradient was written to"


@each_backend
@each_case
def test_float64_joins_the_norm(case: Case, backend: str) -> None:
    """It always runs on eager, whose coefficient must be fit for kernels that know no float64."""
    tensors = [FLOAT64[0], *MIXED[:2], *SIXTEEN_BIT[:2]]
    bench = Bench(case, tensors, backend, max_grad_norm=0.5)
    bench.randomise_params(-1, 0)
    grads = bench.set_gradients(-1, 0)
    start = [bench.value(i) for i in range(len(tensors))]
    bench.optimizer.step()
    norm = bench.optimizer.grad_norm.item()
    assert norm == pytest.approx(global_norm(grads), rel=1e-6)
    for i, (tensor, g) in enumerate(zip(tensors, grads, strict=True)):
        clipped, details = g * clip_coefficient_torch(norm, 0.5), {}
        p64, _ = case.step(start[i], clipped, {}, 1, tensor.dtype, details=details)
        bound = 1e-5 * details["update"] + 2 * ulp(p64, dtype_name(tensor.dtype))
        assert_within(bench.params[i], p64, bound, str(tensor))


@each_backend
@each_case
def test_a_norm_within_the_limit_changes_no_bit(case: Case, backend: str) -> None:
    tensors = in_turns(SIXTEEN_BIT, backend, ONE_OF_EACH.index(case), of=5)
    clipped = Bench(case, tensors, backend, max_grad_norm=1e9)
    plain = Bench(case, tensors, backend)
    step_both(clipped, plain)
    assert_same_benches(clipped, plain)


@each_backend
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@each_case
def test_bad_norms_spread_as_in_torch(case: Case, bad: float, backend: str) -> None:
    fused, plain = Bench(case, FLOAT64, backend, max_grad_norm=0.5), Bench(case, FLOAT64, backend)
    for bench in (fused, plain):
        bench.randomise_params(-1, 0)
        bench.set_gradients(-1, 1)
        bench.params[0].grad[0, 0] = bad
    torch.nn.utils.clip_grad_norm_(plain.params, 0.5)
    for bench in (fused, plain):
        bench.optimizer.step()
    for p, q in zip(fused.params, plain.params, strict=True):
        assert torch.equal(p.isnan(), q.isnan())


@each_backend
@each_case
def test_only_parameters_with_gradients_count(case: Case, backend: str) -> None:
    bench = Bench(case, FLOAT64[:3], backend, max_grad_norm=0.5)
    bench.set_gradients(-1, 1)
    bench.params[1].grad = None
    bench.optimizer.step()
    norm = global_norm([bits(bench.params[i].grad) for i in (0, 2)])
    assert bench.optimizer.grad_norm.item() == pytest.approx(norm, rel=1e-12)


# --- Keras's clips --------------------------------------------------------------------------------


def by_value(grads: list[Any]) -> list[Any]:
    return [clip_value(g, 0.2) for g in grads]


KERAS: list[tuple[dict[str, float], Callable[[list[Any]], list[Any]]]] = [
    ({"clipvalue": 0.2}, by_value),
    ({"clipnorm": 0.3}, lambda grads: [clip_norm(g, 0.3) for g in grads]),
    ({"clipnorm": 1e9}, lambda grads: grads),
    ({"global_clipnorm": 0.4}, lambda grads: clip_global_norm_tf(grads, 0.4)),
    ({"clipvalue": 0.2, "clipnorm": 0.3}, lambda gs: [clip_norm(g, 0.3) for g in by_value(gs)]),
    (
        {"clipvalue": 0.2, "global_clipnorm": 0.4},
        lambda grads: clip_global_norm_tf(by_value(grads), 0.4),
    ),
    (
        {"clipvalue": 0.2, "max_grad_norm": 0.4},
        lambda grads: clip_global_norm_torch(by_value(grads), 0.4),
    ),
]


@each_backend
@pytest.mark.parametrize(("options", "clip"), KERAS, ids=[str(o) for o, _ in KERAS])
@pytest.mark.parametrize("tensors", [FLOAT64, MIXED], ids=["float64", "mixed"])
def test_keras_clips(
    tensors: list[TensorCase], options: dict[str, float], clip: Any, backend: str
) -> None:
    (case,) = (case for case in ONE_OF_EACH if case.optimizer is fused_optim.AdamWeightDecay)
    bench = Bench(case, tensors, backend, **options)
    bench.randomise_params(-1, 0)
    bench.set_gradients(-2, 1)
    grads = [raw_gradient(p).double().cpu().numpy() for p in bench.params]
    start = [bench.value(i) for i in range(len(tensors))]
    bench.optimizer.step()
    for i, (tensor, g) in enumerate(zip(tensors, clip(grads), strict=True)):
        state = bench.optimizer.state[bench.params[i]]
        details: dict[str, Any] = {}
        p64, _ = case.step(start[i], g, {}, 1, tensor.dtype, details=details)
        # A first step has nearly the size of the learning rate whatever the gradient's: it is the
        # momentum that shows what became of the gradient.
        assert_step_close(
            bench.params[i], p64, 2 * details["update"] + 1, tensor.dtype, decays=True
        )
        rtol = 1e-12 if tensor.dtype is torch.float64 else 2e-6
        assert_within(state["exp_avg"], 0.1 * g, rtol * np.abs(g), str(tensor))
    for p, g in zip(bench.params, grads, strict=True):
        assert_same_bits(raw_gradient(p), g, "gradient")
