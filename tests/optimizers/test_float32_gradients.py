"""Gradients summed in float32: equal to a float32 run where bfloat16 sums lose what is small."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from cases import device_of, each_backend
from optimizer_table import Row, assert_identical, every_optimizer, snapshot
from torch import nn

from fused_optim import AdamW, Float32Gradients, step_in_backward


def model_of(dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu") -> nn.Module:
    source = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3, bias=False))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=source))
    return model.to(dtype).to(device)


def backward(model: nn.Module, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    total: torch.Tensor | float = 0.0
    for p in model.parameters():
        factor = torch.randn(p.shape, generator=source).to(p.dtype).to(p.device)
        total = total + (p * factor).sum().float()
    total.backward()


def means(model: nn.Module, seeds: range) -> list[torch.Tensor]:
    """Return the float32 means of the gradients of `backward`."""
    sums = [torch.zeros_like(p, dtype=torch.float32) for p in model.parameters()]
    for seed in seeds:
        backward(model, seed)
        for total, p in zip(sums, model.parameters(), strict=True):
            total += p.grad
            p.grad = None
    return sums


@each_backend
@every_optimizer
def test_a_window_is_a_step_on_the_mean(row: Row, backend: str) -> None:
    device = device_of(backend)
    summed, plain = model_of(device=device), model_of(device=device)
    first, second = (row.build(model, backend=backend) for model in (summed, plain))
    gradients = Float32Gradients(first)
    for window in (range(4), range(4, 8), range(8, 11)):  # the last one is shorter
        for seed in window:
            backward(summed, seed)
        assert gradients.micro_batches == len(window)
        assert all(p.grad is None for p in summed.parameters())
        first.step()
        assert gradients.micro_batches == 0
        for p, total in zip(plain.parameters(), means(plain, window), strict=True):
            p.main_grad = total
        second.grad_scale = torch.tensor(float(len(window)), device=device)
        second.step()
    assert_identical(snapshot(first), snapshot(second))


def test_losses_of_many_tiny_micro_batches_equal_float32s() -> None:
    """256 gradients of 1 and 2^-3 by turns: bfloat16 sums beyond 32 lose the small ones."""

    def trained(dtype: torch.dtype, in_float32: bool) -> torch.Tensor:
        p = nn.Parameter(torch.zeros(4, dtype=dtype))
        gradients = Float32Gradients(AdamW([p])) if in_float32 else None
        for i in range(512):
            (p * (1.0 if i % 2 else 2.0**-3)).sum().backward()
        if gradients is not None:
            return p.main_grad.clone() / gradients.micro_batches
        return p.grad.float() / 512

    exact = (256 + 256 * 2.0**-3) / 512
    assert (trained(torch.bfloat16, True) == exact).all()
    assert (trained(torch.float32, False) == exact).all()
    assert (trained(torch.bfloat16, False) < 0.95 * exact).all()


@each_backend
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_divisor_of_ones_own_holds_for_one_step(as_tensor: bool, backend: str) -> None:
    device = device_of(backend)
    p, q = (nn.Parameter(torch.ones(3, device=device)) for _ in range(2))
    ours, plain = (AdamW([x], lr=0.1, betas=(0.0, 0.5), backend=backend) for x in (p, q))
    gradients = Float32Gradients(ours)
    for divisor in (7.0, None):
        for _ in range(2):
            (p * 3.0).sum().backward()
        if divisor is not None:
            gradients.divide_by(torch.tensor(divisor, device=device) if as_tensor else divisor)
        ours.step()
        q.grad = torch.full_like(q, 6.0) * (torch.tensor(1.0) / (divisor or 2.0)).item()
        plain.step()
        assert_identical(snapshot(ours), snapshot(plain))


def test_without_a_mean_nothing_is_divided() -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = AdamW([p])
    gradients = Float32Gradients(optimizer, mean=False)
    for _ in range(3):
        p.sum().backward()
    assert gradients.divisor(p.device) is None
    assert p.main_grad.tolist() == [3.0, 3.0]


def test_clipping_and_a_gradient_scale_see_the_mean() -> None:
    p = nn.Parameter(torch.zeros(4))
    optimizer = AdamW([p], max_grad_norm=1.0)
    Float32Gradients(optimizer)
    for _ in range(4):
        (p * 3.0).sum().backward()
    optimizer.grad_scale = torch.tensor(2.0)
    optimizer.step()
    assert optimizer.grad_norm.item() == math.sqrt(4 * 1.5**2)


def test_parameters_without_gradients_are_left_alone() -> None:
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AdamW([p, q], lr=0.1, weight_decay=0.1)
    gradients = Float32Gradients(optimizer)
    for x in (p, q, p):
        x.sum().backward()
        optimizer.step()
    assert [optimizer.state[x]["step"] for x in (p, q)] == [2, 1]
    p.sum().backward()
    gradients.reset()
    optimizer.step()
    assert optimizer.state[p]["step"] == 2 and gradients.micro_batches == 0


def test_a_step_that_raises_loses_no_sums() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = AdamW([p], lr=0.1)
    gradients = Float32Gradients(optimizer)
    p.sum().backward()
    optimizer.param_groups[0]["lr"] = math.nan
    with pytest.raises(ValueError, match="learning rate"):
        optimizer.step()
    assert gradients.micro_batches == 1 and p.main_grad.tolist() == [1.0, 1.0]
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert p.main_grad is None and (p < 1.0).all()


def test_removed_hooks_leave_gradients_alone() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = AdamW([p])
    Float32Gradients(optimizer).remove()
    p.sum().backward()
    assert p.grad.tolist() == [1.0, 1.0] and p.main_grad is None
    optimizer.step()
    p.grad = None
    Float32Gradients(optimizer)
    assert copy.deepcopy(optimizer)._gradients is None


def test_bad_input_is_refused() -> None:
    model = model_of()
    optimizer = AdamW(model.parameters())
    with pytest.raises(TypeError, match="Float32Gradients takes an optimizer of fused_optim"):
        Float32Gradients(torch.optim.SGD(model.parameters()))
    half = model_of(torch.float16)
    with pytest.raises(ValueError, match="parameter 0 of group 0 is float16"):
        Float32Gradients(AdamW(half.parameters()))
    gradients = Float32Gradients(optimizer)
    for second in (Float32Gradients, lambda o: step_in_backward(model, o)):
        with pytest.raises(ValueError, match="already go to a Float32Gradients; remove"):
            second(optimizer)
    for bad in (0, -1.0, math.nan, math.inf, True, "7"):
        with pytest.raises(ValueError, match="should be a positive number"):
            gradients.divide_by(bad)
    with pytest.raises(ValueError, match=r"a tensor of shape \(2,\)"):
        gradients.divide_by(torch.ones(2))


def test_a_gradient_that_was_not_summed_is_refused() -> None:
    p, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = AdamW([p, late])
    Float32Gradients(optimizer)
    late.requires_grad_()
    (p + late).sum().backward()
    with pytest.raises(RuntimeError, match="parameter 1 of group 0 has a p.grad that was not"):
        optimizer.step()
