"""Side by side with the real optimizers of torch and transformers, over many random steps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from cases import device_of, each_backend, interpreted
from tolerances import TRAJECTORY_RTOL, assert_within, ulp

import fused_optim
from fused_optim import torch_compat

SHAPES = [(), (7,), (1, 9), (9, 1), (5, 4), (2, 3, 4), (2, 1, 2, 3, 2)]
STEPS = 25
FEW_SHAPES, FEW_STEPS = [(), (7,), (1, 9), (3, 2), (2, 1, 2, 3, 2)], 4  # where interpreted


def run_beside(
    ours: type, peer: type, options: dict[str, Any], dtype: torch.dtype, backend: str
) -> None:
    """Train the same tensors with two optimizers on the same gradients and compare them."""
    device = device_of(backend)
    few = interpreted(backend) and dtype is not torch.float64  # which no kernel takes
    shapes, steps = (FEW_SHAPES, FEW_STEPS) if few else (SHAPES, STEPS)
    start = [torch.randn(shape, dtype=dtype, device=device) for shape in shapes]
    own, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    optimizers = [ours(own, backend=backend, **options), peer(theirs, **options)]
    for step in range(steps):
        for p, q in zip(own, theirs, strict=True):
            p.grad = torch.randn_like(p) * 10.0 ** torch.randint(-3, 2, ()).item()
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
            if step == steps // 2:  # as a schedule would
                for group in optimizer.param_groups:
                    group["lr"] = group["lr"] and group["lr"] * 0.5
    for first, p, q in zip(start, own, theirs, strict=True):
        assert p.grad is not None and torch.equal(p.grad, q.grad)
        if dtype is torch.float64:
            assert_within(p, q, 1e-12 * (1 + q.detach().abs().cpu().numpy()), "parameter")
            check_state(optimizers[0].state[p], optimizers[1].state[q], options)
        else:
            # Decay is one more rounding in every step, and not the same one in both.
            travelled = (q.double() - first.double()).norm().item()
            rounding = steps * 0.5 * np.linalg.norm(ulp(q, "float32"))
            error = (p.double() - q.double()).norm().item()
            assert error <= TRAJECTORY_RTOL["float32", "none"] * travelled + rounding


def check_state(own: dict[str, Any], theirs: dict[str, Any], options: dict[str, Any]) -> None:
    assert set(theirs) <= set(own)
    for key, expected in theirs.items():
        if key == "RMS" and not options.get("scale_parameter", True):
            continue
        expected = torch.as_tensor(expected).double()
        actual = torch.as_tensor(own[key]).double()
        bound = 1e-11 * expected.abs().clamp(min=1e-30)
        assert actual.shape == expected.shape, key
        if key == "exp_avg":  # terms cancel
            bound = bound + 1e-12
        assert_within(actual, expected, bound.cpu().numpy(), key)


def in_both_precisions(options: list[dict[str, Any]], some: int = 1) -> Any:
    """Parametrize a test with options in float64, and every so many of them in float32."""
    pairs = [(o, torch.float64) for o in options] + [(o, torch.float32) for o in options[::some]]
    return pytest.mark.parametrize(("options", "dtype"), pairs, ids=str)


TRANSFORMERS = [
    {**rate, **flags}
    for rate in ({}, {"warmup_init": True}, {"lr": 0.03, "relative_step": False})
    for flags in (
        *(
            {"scale_parameter": scale, "beta1": beta1, "weight_decay": decay}
            for scale, beta1, decay in itertools.product((True, False), (None, 0.9), (0.0, 0.1))
        ),
        {"beta1": 0.0, "weight_decay": -0.1},
        {"eps": (1e-3, 0.5), "decay_rate": -0.5, "clip_threshold": 0.3},
        {"clip_threshold": float("inf")},
    )
]


@each_backend
@in_both_precisions(TRANSFORMERS, 3)
def test_transformers_adafactor(options: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    peer = pytest.importorskip("transformers").Adafactor
    run_beside(fused_optim.Adafactor, peer, options, dtype, backend)


@each_backend
@in_both_precisions(
    [
        {},
        {"lr": 0.7, "weight_decay": 0.1},
        {"lr": 0.1, "beta2_decay": -0.5, "d": 2.0, "maximize": True},
        {"lr": 0.1, "eps": (1e-2, 0.5), "weight_decay": 0.01},
    ]
)
def test_torch_adafactor(options: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    run_beside(torch_compat.Adafactor, torch.optim.Adafactor, options, dtype, backend)


ADAM = [
    {"weight_decay": decay, "amsgrad": amsgrad, "maximize": maximize}
    for decay, amsgrad, maximize in itertools.product((0.0, 0.1), (False, True), (False, True))
]
ADAM += [{}, {"lr": 0.1, "betas": (0.0, 0.0), "eps": 0.1}, {"betas": (0.999, 0.9999)}]


@each_backend
@in_both_precisions(ADAM)
@pytest.mark.parametrize("name", ["AdamW", "Adam"])
def test_torch_adam(name: str, options: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    ours, peer = getattr(torch_compat, name), getattr(torch.optim, name)
    run_beside(ours, peer, options, dtype, backend)


@each_backend
def test_decoupled_adam(backend: str) -> None:
    options = {"weight_decay": 0.1, "decoupled_weight_decay": True}
    run_beside(torch_compat.Adam, torch.optim.Adam, options, torch.float64, backend)


@each_backend
@pytest.mark.parametrize("name", ["AdamW", "Adam", "Adafactor"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_learning_rate_in_a_tensor(name: str, shape: tuple[int, ...], backend: str) -> None:
    ours, peer = getattr(torch_compat, name), getattr(torch.optim, name)
    options = {"lr": torch.full(shape, 0.01, dtype=torch.float64), "weight_decay": 0.1}
    run_beside(ours, peer, options, torch.float64, backend)


@each_backend
def test_a_learning_rate_tensor_is_read_at_every_step(backend: str) -> None:
    lr = torch.tensor(0.0)
    p = torch.nn.Parameter(torch.ones(3, device=device_of(backend)))
    optimizer = torch_compat.AdamW([p], lr=lr, weight_decay=0.0, backend=backend)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert (p == 1).all()
    lr.fill_(0.5)
    optimizer.step()
    assert p.tolist() == pytest.approx([0.5] * 3, rel=1e-6)
    assert optimizer.param_groups[0]["lr"] is lr
