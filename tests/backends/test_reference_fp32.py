"""The float32 bit reference of AdamW against the float64 oracles, in every mode."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from reference_fp32 import MODES, Row, adamw_step, adamw_update, prepare_gradient, reference_row
from reference_storage import decode, encode, moment_dtype
from tolerances import (
    assert_same_bits,
    assert_statistic_close,
    assert_step_close,
    assert_trajectory_close,
)

HYPER = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6}
FRONT_ENDS = {
    "transformers": (oracle.adamw_transformers, 0.1),
    "torch_adamw": (oracle.adamw_torch, 0.1),
    "torch_adam": (oracle.adam_torch, 0.01),
}


def oracle_step(semantics: str, p: Any, g: Any, state: Any, t: int, **extra: Any) -> Any:
    if semantics == "tensorflow":
        kwargs = {"learning_rate": 1e-3, "epsilon": 1e-6, "weight_decay_rate": 0.1}
        return oracle.adam_weight_decay_tf(p, g, state, t, **kwargs, **extra)
    step, decay = FRONT_ENDS[semantics]
    return step(p, g, state, t, **HYPER, weight_decay=decay, **extra)


def row_of(semantics: str, t: int, **extra: Any) -> Row:
    decay = 0.01 if semantics == "torch_adam" else 0.1
    return reference_row(semantics, **HYPER, weight_decay=decay, step=t, **extra)


def random_state(t: int, n: int, amsgrad: bool) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Parameters, gradients and moments over many magnitudes; no moments before step 1."""
    rng = np.random.default_rng(t)

    def sample(low: float, high: float) -> np.ndarray:
        size = 10.0 ** rng.uniform(low, high, n)
        return (rng.normal(size=n) * size).astype(np.float32)

    p, g = sample(-4, 1), sample(-6, 1)
    if t == 1:
        return p, g, {}
    state = {"exp_avg": sample(-6, 1), "exp_avg_sq": sample(-6, 1) ** 2}
    if amsgrad:
        state["max_exp_avg_sq"] = state["exp_avg_sq"] * np.float32(1.01)
    return p, g, state


CASES = [
    (semantics, amsgrad, maximize)
    for semantics in (*FRONT_ENDS, "tensorflow")
    for amsgrad in (False, True)
    for maximize in (False, True)
    if not (amsgrad and semantics == "transformers")
]


@pytest.mark.parametrize(("semantics", "amsgrad", "maximize"), CASES)
def test_one_step_is_the_oracles(semantics: str, amsgrad: bool, maximize: bool) -> None:
    extra = {"amsgrad": amsgrad} if amsgrad else {}
    for t in (1, 2, 10, 1000):
        p, g, state = random_state(t, 20_000, amsgrad)
        details: dict[str, np.ndarray] = {}
        p64, state64 = oracle_step(
            semantics, p, g, state, t, maximize=maximize, details=details, **extra
        )
        row = row_of(semantics, t, maximize=maximize)
        p32, state32 = adamw_step(p, g, state, row, amsgrad=amsgrad)
        assert_step_close(p32, p64, details["update"], "float32", decays=True)
        for key, value in state32.items():
            assert value.dtype == np.float32
            assert_statistic_close(value, state64[key], size=details.get(key))


def test_uncorrected_moments() -> None:
    p, g, state = random_state(3, 1000, False)
    details: dict[str, np.ndarray] = {}
    p64, _ = oracle.adamw_transformers(p, g, state, 3, correct_bias=False, details=details)
    row = reference_row("transformers", **HYPER, weight_decay=0.0, step=3, correct_bias=False)
    p32, _ = adamw_step(p, g, state, row)
    assert_step_close(p32, p64, details["update"], "float32")


def test_gradient_preparation() -> None:
    g = np.array([3.0, -3.0, 0.25, np.nan, np.inf], np.float32)
    row = row_of("transformers", 1, maximize=True, clip_value=1.0)
    out = prepare_gradient(g, row, grad_scale=2.0, clip_coef=0.5)
    assert_same_bits(out, np.array([-0.5, 0.5, -0.0625, np.nan, -0.5]))
    unclipped = prepare_gradient(g, row_of("transformers", 1))
    assert_same_bits(unclipped, g)


def test_every_operation_rounds_once() -> None:
    # A float64 operation on float32 values, rounded to float32, is the float32 operation: 53 bits
    # are enough for the second rounding never to matter. No numpy array is involved here.
    def f(x: float) -> float:
        return float(np.float32(x))

    def by_hand(p: float, g: float, m: float, v: float, h: float, row: Row) -> list[float]:
        l2, omb1, b2, omb2 = map(float, (row.l2, row.omb1, row.b2, row.omb2))
        g = g if l2 == 0 else f(g + f(l2 * p))
        p = f(p * float(row.decay_before))
        m = f(m + f(omb1 * f(g - m)))
        v = f(f(b2 * v) + f(f(omb2 * g) * g))
        h = max(h, v)
        denominator = f(f(f(math.sqrt(h)) * float(row.denom_scale)) + float(row.eps))
        p = f(p - f(f(float(row.step_size) * m) / denominator))
        return [f(p * float(row.decay_after)), m, v, h]

    p, g, state = random_state(7, 300, True)
    m, v, h = state.values()
    for semantics in (*FRONT_ENDS, "tensorflow"):
        row = row_of(semantics, 7)
        columns = [x.tolist() for x in (p, g, m, v, h)]
        expected = np.array([by_hand(*x, row) for x in zip(*columns, strict=True)]).T
        for actual, column in zip(adamw_update(p, g, m, v, h, row), expected, strict=True):
            assert_same_bits(actual, column, semantics)


def test_amsgrad_maximum_carries_nan() -> None:
    state = {k: np.ones(2, np.float32) for k in ("exp_avg", "exp_avg_sq")}
    state["max_exp_avg_sq"] = np.array([np.nan, 5.0], np.float32)
    one = np.ones(2, np.float32)
    p, state = adamw_step(one, one, state, row_of("torch_adamw", 5), amsgrad=True)
    assert np.isnan(p).tolist() == [True, False]
    assert np.isnan(state["max_exp_avg_sq"]).tolist() == [True, False]


def test_shapes_survive() -> None:
    for shape in ((), (0,), (2, 0), (2, 3)):
        p, state = adamw_step(
            np.ones(shape, np.float32), np.ones(shape, np.float32), {}, row_of("torch_adamw", 1)
        )
        assert p.shape == state["exp_avg"].shape == shape


def test_torch_computes_the_same_but_for_the_last_bits() -> None:
    p, g, _ = random_state(1, 1000, False)
    param = torch.nn.Parameter(torch.from_numpy(p.copy()))
    peer = torch.optim.AdamW([param], **HYPER, weight_decay=0.1)
    state: dict[str, Any] = {}
    for t in range(1, 6):
        param.grad = torch.from_numpy(g.copy())
        peer.step()
        p, state = adamw_step(p, g, state, row_of("torch_adamw", t))
    np.testing.assert_allclose(param.detach().numpy(), p, rtol=3e-6, atol=1e-8)


# --- 16-bit parameters and moments ---------------------------------------------------------------

PAIRS = [(dtype, mode) for dtype, modes in MODES.items() for mode in modes]


@pytest.mark.parametrize(("dtype", "mode"), PAIRS)
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "float16"])
def test_one_step_from_stored_state(dtype: str, mode: str, state_dtype: str) -> None:
    random = oracle.Random(seed=5, number=2)
    p, g, _ = random_state(1, 4096, False)
    p, state = encode(p, dtype, mode, random)
    for t in (1, 2):  # the second starts from moments and extra state as the first stored them
        value = decode(p, state, dtype, mode).astype(np.float64)
        moments = {k: v for k, v in state.items() if k.startswith("exp_avg")}
        wide = {k: widen_moment(v, state_dtype) for k, v in moments.items()}
        details: dict[str, np.ndarray] = {}
        p64, state64 = oracle_step("torch_adamw", value, g, wide, t, details=details)
        p, state = adamw_step(
            p,
            g,
            state,
            row_of("torch_adamw", t),
            dtype=dtype,
            mode=mode,
            state_dtype=state_dtype,
            random=random,
        )
        shown = p if dtype == "float32" else oracle.widen(p, dtype)
        assert_step_close(shown, p64, details["update"], dtype, decays=True)
        if mode in ("split", "master"):
            kept = decode(p, state, dtype, mode)
            assert_step_close(kept, p64, details["update"], "float32", decays=True)
        for key in ("exp_avg", "exp_avg_sq"):
            actual = widen_moment(state[key], state_dtype)
            stored_as = moment_dtype(key, state_dtype)
            assert_statistic_close(actual, state64[key], stored_as, details[key])


def widen_moment(stored: np.ndarray, state_dtype: str) -> np.ndarray:
    return stored if stored.dtype == np.float32 else oracle.widen(stored, state_dtype)


def test_split_is_master() -> None:
    p0 = oracle.round_nearest(random_state(1, 4096, False)[0], "bfloat16")
    split, master, split_state, master_state = p0, p0, {}, {}
    for t in range(1, 20):
        g = random_state(t, 4096, False)[1]
        row = row_of("transformers", t)
        split, split_state = adamw_step(split, g, split_state, row, dtype="bfloat16", mode="split")
        master, master_state = adamw_step(
            master, g, master_state, row, dtype="bfloat16", mode="master"
        )
        assert (split == master).all()
        assert_same_bits(decode(split, split_state, "bfloat16", "split"), master_state["master"])


@pytest.mark.parametrize(("dtype", "mode"), PAIRS)
def test_zero_updates_leave_every_parameter_as_it_was(dtype: str, mode: str) -> None:
    if dtype == "float32":
        p = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    else:
        p = np.arange(1 << 16, dtype=np.uint16)
        p = p[~np.isnan(oracle.widen(p, dtype))]
    start, state = p, {}
    for t in (1, 2):
        row = reference_row("torch_adamw", 0.0, (0.9, 0.999), 1e-8, 0.1, t)
        g = np.zeros(p.shape, np.float32)
        p, state = adamw_step(p, g, state, row, dtype=dtype, mode=mode, state_dtype="bfloat16")
        assert (p == start).all()


@pytest.mark.parametrize(("dtype", "mode"), [pair for pair in PAIRS if pair[1] != "nearest"])
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
def test_trajectories(dtype: str, mode: str, state_dtype: str) -> None:
    rng = np.random.default_rng(0)
    start = rng.normal(size=2000).astype(np.float32)
    p, state = encode(start, dtype, mode, oracle.Random(seed=1))
    p64 = decode(p, state, dtype, mode).astype(np.float64)
    first, state64 = p64, {}
    wave = rng.normal(size=2000)
    for t in range(1, 301):
        g = (wave + rng.normal(size=2000)).astype(np.float32)
        p64, state64 = oracle_step("transformers", p64, g, state64, t)
        p, state = adamw_step(
            p,
            g,
            state,
            row_of("transformers", t),
            dtype=dtype,
            mode=mode,
            state_dtype=state_dtype,
            random=oracle.Random(seed=1),
        )
    shown = p if dtype == "float32" else oracle.widen(p, dtype)
    bf16 = state_dtype == "bfloat16"
    assert_trajectory_close(shown, p64, first, dtype, mode, steps=300, bf16_moments=bf16)
