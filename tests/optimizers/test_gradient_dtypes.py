"""Float32 gradients of 16-bit parameters, by the two ways there are to have them."""

from __future__ import annotations

import itertools

import pytest
import torch
from cases import FLOATS, LOW_PRECISION, ONE_OF_EACH, STATE_DTYPES, Case, TensorCase, each_backend
from optimizer_table import assert_identical, snapshot
from parity import Bench

needs_grad_dtype = pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="needs torch's grad_dtype"
)
SHAPES = itertools.cycle([(13,), (4, 6)])
TENSORS = [
    TensorCase(next(SHAPES), dtype, mode, state_dtype=state_dtype)
    for (dtype, mode), state_dtype in itertools.product(LOW_PRECISION, STATE_DTYPES)
]


class Product(torch.autograd.Function):
    """A sum of products whose derivative is float32, as that of a fused layer may be."""

    @staticmethod
    def forward(ctx, p, factor):
        ctx.save_for_backward(factor)
        return (p.float() * factor).sum()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None


def backward(bench: Bench, step: int) -> None:
    """Give every parameter, by autograd, gradients that 16 bits don't hold."""
    source = torch.Generator().manual_seed(step)
    for p in bench.params:
        p.grad = None
        factor = torch.randn(p.shape, generator=source).to(p.device)
        Product.apply(p, factor).backward()


def differences(first: Bench, second: Bench) -> list[bool]:
    """Return for each parameter whether any state tensor differs."""
    pairs = zip(*(snapshot(bench.optimizer)[1] for bench in (first, second)), strict=True)
    return [
        any(not torch.equal(a[k], b[k]) for k in a if isinstance(a[k], torch.Tensor))
        for a, b in pairs
    ]


@needs_grad_dtype
@each_backend
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_grad_dtype_and_main_grad_are_one_thing(case: Case, backend: str) -> None:
    """In every mode and state dtype at once, in one optimizer, on the fast path of a step too."""
    by_torch, by_hand, rounded = (Bench(case, TENSORS, backend) for _ in range(3))
    for bench in (by_torch, by_hand, rounded):
        bench.randomise_params(-2, 0)
    for p in by_torch.params:
        p.grad_dtype = torch.float32
    backward(rounded, 0)
    rounded.optimizer.step()
    for step in range(3):
        backward(by_torch, step)
        for p, q in zip(by_torch.params, by_hand.params, strict=True):
            assert p.grad.dtype is torch.float32
            assert not torch.equal(p.grad, p.grad.to(p.dtype).float())
            q.main_grad = p.grad.clone()
        for bench in (by_torch, by_hand):
            bench.optimizer.step()
        assert_identical(snapshot(by_torch.optimizer), snapshot(by_hand.optimizer))
        if step == 0:
            differ = differences(by_torch, rounded)
            assert sum(differ) > 0.85 * len(differ)  # short ones may agree once they are rounded


@needs_grad_dtype
@pytest.mark.parametrize("dtype", [d for d in FLOATS if d is not torch.float64], ids=str)
def test_gradients_of_every_dtype_change_from_step_to_step(dtype: torch.dtype) -> None:
    """The fast path of a step compares dtypes: what it remembers is not what comes."""
    fast, plain = (Bench(ONE_OF_EACH[0], [TensorCase((9,), dtype, "nearest")]) for _ in range(2))
    for step, grad_dtype in enumerate((torch.float32, torch.bfloat16, torch.float16, dtype)):
        grad = torch.randn(9).to(grad_dtype)
        (p,), (q,) = fast.params, plain.params
        p.grad_dtype = None
        p.grad = grad
        q.grad, q.main_grad = None, grad.float()
        for bench in (fast, plain):
            bench.optimizer.step()
        if dtype is not torch.float32:  # for which torch's own operator may serve one of them
            assert_identical(snapshot(fast.optimizer), snapshot(plain.optimizer), f"step {step}")
