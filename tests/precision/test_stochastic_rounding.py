"""Stochastic rounding of parameters and moments: its bits, its statistics, its independence."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import torch
from cases import device_of, each_backend, each_backend_slowly, interpreted
from oracle import STREAMS, Random
from stored import bits
from tolerances import dtype_name

import fused_optim
from fused_optim import torch_compat

SIXTEEN_BIT = [torch.bfloat16, torch.float16]
LR, DECAY = 0.5, 0.25
FACTOR = np.float32(1 - LR * DECAY)
SEED = 0x9ABCDEF012345678

# Three optimizers that, given gradients of zero, do nothing but `p * FACTOR`, rounded once.
DECAYING: dict[str, Any] = {
    "AdamW": lambda params, **common: fused_optim.AdamW(
        params, lr=LR, weight_decay=DECAY, low_precision="stochastic", seed=SEED, **common
    ),
    "AdamWeightDecay": lambda params, **common: fused_optim.AdamWeightDecay(
        params, LR, weight_decay_rate=DECAY, low_precision="stochastic", seed=SEED, **common
    ),
    "Adafactor": lambda params, **common: torch_compat.Adafactor(
        params, lr=LR, weight_decay=DECAY, low_precision="stochastic", seed=SEED, **common
    ),
}


def expected_decay(p: np.ndarray, dtype: torch.dtype, step: int, number: int) -> np.ndarray:
    """Return the bits of ``p * FACTOR`` as the reference rounds them."""
    name = dtype_name(dtype)
    r = Random(seed=SEED, step=step, number=number).bits16(p.shape, STREAMS["param"])
    return oracle.round_stochastic(oracle.widen(p, name) * FACTOR, r, name)


@each_backend
@pytest.mark.parametrize("make", DECAYING.values(), ids=DECAYING)
@pytest.mark.parametrize("dtype", SIXTEEN_BIT, ids=str)
def test_bits_are_the_references(make: Any, dtype: torch.dtype, backend: str) -> None:
    """Sizes beside and beyond the backends' blocks, other layouts, numbers across groups."""
    device = device_of(backend)
    long, *wide = (4103, 20, 30) if interpreted(backend) else (66_001, 300, 500)
    tensors = [torch.randn(s, device=device).to(dtype) for s in ((), (13,), (0,), (long,))]
    tensors += [torch.randn(wide, device=device).to(dtype).t()]
    tensors += [torch.randn(4, 6, 5, 7, device=device).to(dtype).permute(0, 2, 3, 1)]
    tensors += [(torch.randn(3, long // 4, device=device) * 1e-6).to(dtype)[:, 1:]]
    params = [torch.nn.Parameter(t) for t in tensors]
    optimizer = make([{"params": params[:2]}, {"params": params[2:]}], backend=backend)
    for step in (1, 2):
        before = [bits(p) for p in params]
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        for number, (p, old) in enumerate(zip(params, before, strict=True)):
            expected = expected_decay(old, dtype, step, number)
            assert (bits(p) == expected).all(), f"parameter {number}, step {step}"


@each_backend
@pytest.mark.parametrize("amsgrad", [False, True])
def test_moments_have_streams_of_their_own(amsgrad: bool, backend: str) -> None:
    device = device_of(backend)
    sizes = (4104 if interpreted(backend) else 70_000, 9)
    params = [torch.nn.Parameter(torch.ones(s, device=device)) for s in sizes]
    optimizer = torch_compat.AdamW(
        params, state_dtype=torch.bfloat16, amsgrad=amsgrad, seed=SEED, backend=backend
    )
    optimizer.init_state()
    for step in (1, 2, 3):
        stored = [
            {k: bits(v) for k, v in optimizer.state[p].items() if k != "step"} for p in params
        ]
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
        for number, (p, old) in enumerate(zip(params, stored, strict=True)):
            g = bits(p.grad)
            m, v = (oracle.widen(old[key], "bfloat16") for key in ("exp_avg", "exp_avg_sq"))
            new = {"exp_avg": m + np.float32(1 - 0.9) * (g - m)}
            new["exp_avg_sq"] = np.float32(0.999) * v + np.float32(1 - 0.999) * g * g
            if amsgrad:
                largest = oracle.widen(old["max_exp_avg_sq"], "bfloat16")
                new["max_exp_avg_sq"] = np.maximum(largest, new["exp_avg_sq"])
            for key, value in new.items():
                r = Random(seed=SEED, step=step, number=number).bits16(g.shape, STREAMS[key])
                expected = oracle.round_stochastic(value, r, "bfloat16")
                assert (bits(optimizer.state[p][key]) == expected).all(), (key, number, step)


@each_backend
def test_adafactors_momentum_has_the_stream_of_a_first_moment(backend: str) -> None:
    shape = (30, 25) if interpreted(backend) else (300, 250)
    p = torch.nn.Parameter(torch.ones(shape, device=device_of(backend)))
    optimizer = fused_optim.Adafactor(
        [p], beta1=0.9, state_dtype=torch.bfloat16, seed=SEED, backend=backend
    )
    optimizer.init_state()
    momentum = optimizer.state[p]["exp_avg"]
    momentum.copy_(torch.randn_like(p))
    for step in (1, 2):
        value = np.float32(0.9) * oracle.widen(bits(momentum), "bfloat16")
        r = Random(seed=SEED, step=step).bits16(value.shape, STREAMS["exp_avg"])
        p.grad = torch.zeros_like(p)
        optimizer.step()
        assert (bits(momentum) == oracle.round_stochastic(value, r, "bfloat16")).all()


def decay_once(
    p: torch.Tensor, backend: str, decay: float = 2.0**-10, seed: int = 0
) -> torch.Tensor:
    """Return ``p * (1 - decay)`` as a step stores it."""
    param = torch.nn.Parameter(p.clone().to(device_of(backend)))
    optimizer = fused_optim.AdamW(
        [param], decay, weight_decay=1.0, low_precision="stochastic", seed=seed, backend=backend
    )
    param.grad = torch.zeros_like(param)
    optimizer.step()
    return param.detach().cpu()


@each_backend_slowly
@pytest.mark.parametrize(
    ("dtype", "value", "decay"),
    [
        pytest.param(torch.bfloat16, 1.0, 2.0**-10, id="bfloat16"),
        pytest.param(torch.float16, 1.0, 2.0**-13, id="float16"),
        pytest.param(torch.float16, 3 * 2.0**-20, 2.0**-8, id="subnormal float16"),
    ],
)
def test_mean_and_variance(dtype: torch.dtype, value: float, decay: float, backend: str) -> None:
    """The neighbour below is taken exactly as often as the update covers of the way to it."""
    count = 1 << 18
    x = decay_once(torch.full((count,), value, dtype=dtype), backend, decay).double()
    lower, exact = x.min().item(), value * (1 - decay)
    assert x.max().item() == value and lower < exact
    share = (value - exact) / (value - lower)
    assert share == (0.1875 if value < 1 else 0.25)
    variance = (value - lower) ** 2 * share * (1 - share)
    assert abs(x.mean().item() - exact) < 4 * (variance / count) ** 0.5
    assert x.var().item() == pytest.approx(variance, rel=0.02)


@each_backend_slowly
def test_decisions_are_independent(backend: str) -> None:
    """Of neighbours, of other elements, numbers, steps and seeds: agreement is as by chance."""
    count = 1 << 16
    start = torch.full((count,), 1.0, dtype=torch.float16)
    params = [torch.nn.Parameter(start.clone().to(device_of(backend))) for _ in range(2)]
    optimizer = fused_optim.AdamW(
        params, 2.0**-12, weight_decay=1.0, low_precision="stochastic", backend=backend
    )
    draws = []
    for _ in range(2):
        for p in params:
            p.data.copy_(start)
            p.grad = torch.zeros_like(p)
        optimizer.step()
        draws += [(p.detach().cpu() < 1) for p in params]
    draws += [decay_once(start, backend, 2.0**-12, seed) < 1 for seed in (1, 1 << 32)]
    draws += [draws[0].roll(shift) for shift in (1, 2, 8, 1 << 12)]
    for i, first in enumerate(draws):
        assert first.double().mean().item() == pytest.approx(0.5, abs=0.01)
        for second in draws[:i]:
            assert (first == second).double().mean().item() == pytest.approx(0.5, abs=0.01)


@each_backend
def test_replicas_agree_and_torchs_generator_is_left_alone(backend: str) -> None:
    start = torch.randn(1000).bfloat16()
    first = decay_once(start, backend)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    second = decay_once(start, backend)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, decay_once(start, backend, seed=1))


@each_backend
def test_the_step_count_survives_a_checkpoint(backend: str) -> None:
    """A resumed run draws the bits that the uninterrupted one would have drawn."""
    p = torch.nn.Parameter(torch.randn(1000).to(device_of(backend), torch.bfloat16))
    optimizer = DECAYING["AdamW"]([p], backend=backend)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    q = torch.nn.Parameter(p.detach().clone())
    resumed = DECAYING["AdamW"]([q], backend=backend)
    resumed.load_state_dict(optimizer.state_dict())
    q.grad = torch.zeros_like(q)
    for opt in (optimizer, resumed):
        opt.step()
    assert torch.equal(p, q)


@each_backend
def test_second_moments_decay(backend: str) -> None:
    """To nearest, a bfloat16 v would stay at 1 for ever: 0.999 of it rounds back."""
    if interpreted(backend):
        pytest.skip("would take an hour in Triton's interpreter")
    steps, count = 2829, 2048
    p = torch.nn.Parameter(torch.ones(count, device=device_of(backend)))
    optimizer = fused_optim.AdamW([p], lr=0.0, state_dtype=torch.bfloat16, backend=backend)
    optimizer.init_state()
    v = optimizer.state[p]["exp_avg_sq"]
    v.fill_(1.0)
    p.grad = torch.zeros_like(p)
    for _ in range(steps):
        optimizer.step()
    exact = 0.999**steps
    assert exact == pytest.approx(0.059, abs=1e-3)
    # Each step adds an error of up to half an ulp, 2^-9 to 2^-8 of the value.
    sigma = exact * steps**0.5 * 2.0**-8 * 0.5 / count**0.5
    assert abs(v.double().mean().item() - exact) < 3 * sigma
