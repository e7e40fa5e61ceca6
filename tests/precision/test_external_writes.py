"""Parameters that others write to between steps: what was written wins, in every mode."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases import (
    DTYPE_MODES,
    LOW_PRECISION,
    ONE_OF_EACH,
    Case,
    TensorCase,
    each_backend,
    in_turns,
    interpreted,
)
from oracle import widen
from parity import Bench
from stored import bits, write_bits_
from tolerances import as_float64, assert_within, dtype_name, ulp

each_case = pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
TENSORS = [TensorCase((20, 30), d, m) for d, m in DTYPE_MODES]
TENSORS += [TensorCase((50,), d, m, state_dtype=torch.bfloat16) for d, m in DTYPE_MODES]


ORDERS = ["model first", "optimizer first"]


def trained(case: Case, backend: str, turn: int, steps: int = 3) -> Bench:
    """Return some tensors after some steps; another ``turn`` may mean other tensors."""
    tensors = TENSORS
    if interpreted(backend):
        small = {(20, 30): (3, 2), (50,): (5,)}
        tensors = [dataclasses.replace(t, shape=small[t.shape]) for t in TENSORS]
        tensors = in_turns(tensors, backend, turn + ONE_OF_EACH.index(case), of=10)
    bench = Bench(case, tensors, backend)
    bench.randomise_params(-2, 0)
    for _ in range(steps):
        train(bench)
    return bench


def train(bench: Bench) -> None:
    bench.set_gradients(-1, 0)
    bench.optimizer.step()


def contents(bench: Bench) -> list[np.ndarray]:
    """Return every bit of parameters and state."""
    tensors = []
    for p in bench.params:
        state = bench.optimizer.state[p]
        tensors += [bits(p), *(np.asarray(bits(torch.as_tensor(state[k]))) for k in sorted(state))]
    return tensors


def same(first: Bench, second: Bench) -> bool:
    pairs = zip(contents(first), contents(second), strict=True)
    return all((a == b).all() for a, b in pairs)


WRITES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "zero": lambda p, random: torch.zeros_like(p),
    "minus zero": lambda p, random: -torch.zeros_like(p),
    "prune": lambda p, random: p * (random > 0),
    "negate": lambda p, random: -p,
    "halve": lambda p, random: p / 2,
    "random": lambda p, random: random,
}


@each_backend
@pytest.mark.parametrize("write", WRITES)
@each_case
def test_written_values_win(case: Case, write: str, backend: str) -> None:
    """The next step starts from them: to half an ulp, of which the split mode knows no better."""
    bench = trained(case, backend, list(WRITES).index(write))
    for i, (tensor, p) in enumerate(zip(bench.tensors, bench.params, strict=True)):
        random = torch.from_numpy(bench.rng.normal(size=p.shape)).to(p.device, p.dtype)
        before = bits(p)
        p.data.copy_(WRITES[write](p.detach(), random))
        shown = p.detach().double().cpu().numpy()
        half_ulp = 0.5 * ulp(shown, dtype_name(tensor.dtype))
        keeps = tensor.mode in ("split", "kahan") or (bits(p) == before) & (tensor.mode == "master")
        assert_within(bench.value(i), shown, half_ulp * keeps, f"{tensor}")
    grads = bench.set_gradients(-1, 0)
    bench.step_and_check(4, grads)


@each_backend
@each_case
def test_swapping_weights_out_and_back_loses_nothing(case: Case, backend: str) -> None:
    """As an average of weights is swapped in for evaluation."""
    plain, swapped = trained(case, backend, 6), trained(case, backend, 6)
    average = [p.detach() * 0.9 for p in swapped.params]
    for p, other in zip(swapped.params, average, strict=True):
        kept = p.detach().clone()
        p.data.copy_(other)
        p.data.copy_(kept)
    for bench in (plain, swapped):
        train(bench)
    assert same(plain, swapped)


@each_backend
@pytest.mark.parametrize("order", ORDERS)
@each_case
def test_resuming_in_either_order_is_exact(case: Case, order: str, backend: str) -> None:
    turn = ORDERS.index(order)
    going_on = trained(case, backend, turn)
    weights = [p.detach().clone() for p in going_on.params]
    saved = copy.deepcopy(going_on.optimizer.state_dict())
    resumed = trained(case, backend, turn, steps=1)  # its own state is to be replaced
    if order == "optimizer first":
        resumed.optimizer.load_state_dict(saved)
    for p, value in zip(resumed.params, weights, strict=True):
        p.data.copy_(value)
    if order == "model first":
        resumed.optimizer.load_state_dict(saved)
    resumed.rng = copy.deepcopy(going_on.rng)
    for _ in range(2):
        for bench in (going_on, resumed):
            train(bench)
    assert same(going_on, resumed)


@each_backend
@pytest.mark.parametrize(("dtype", "mode"), LOW_PRECISION, ids=str)
def test_any_stale_state_changes_a_step_by_its_rounding_only(
    dtype: torch.dtype, mode: str, backend: str
) -> None:
    """Every parameter pattern beside random bits: a step from there is one from the parameter."""
    case, name = ONE_OF_EACH[0], dtype_name(dtype)
    values = np.arange(1 << 16, dtype=np.uint16)
    values = values[np.isfinite(widen(values, name))]
    bench = Bench(case, [TensorCase(values.shape, dtype, mode)], backend)
    (p,) = bench.params
    write_bits_(p, values)
    for key in ("master", "remainder", "compensation"):
        tensor = bench.optimizer.state[p].get(key)
        if tensor is not None:
            random = np.frombuffer(bench.rng.bytes(tensor.nbytes), bits(tensor).dtype)
            write_bits_(tensor, random)
    (g,) = bench.set_gradients(-1, 0)
    shown, details = widen(values, name).astype(np.float64), {}
    p64, _ = case.step(shown, g, {}, 1, dtype, details=details)
    bench.optimizer.step()
    limit = np.finfo(np.float32).max if dtype is torch.bfloat16 else 65504.0
    keep = np.abs(p64) < limit  # others may or may not overflow
    bound = 2 * ulp(np.maximum(np.abs(p64), np.abs(shown)), name) + 1e-6 * details["update"]
    assert_within(as_float64(p)[keep], p64[keep], bound[keep], "parameter")
