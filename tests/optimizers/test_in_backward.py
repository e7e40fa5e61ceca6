"""Steps during the backward pass: the bits of a step afterwards, and never more than a bucket."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import device_of, each_backend, in_turns, interpreted
from optimizer_table import ROWS, Row, assert_identical, every_optimizer, snapshot
from torch import nn
from torch.utils.checkpoint import checkpoint

import fused_optim
from fused_optim import step_in_backward
from fused_optim.schedules import get_linear_schedule_with_warmup

BUCKETS = (0, 1000, 1 << 30)


class Net(nn.Module):
    """Layers of several sizes, a tied weight, a frozen parameter and one that is never used."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(11, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 11, bias=False)
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(16), requires_grad=False)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=source))
        self.head.weight = self.embedding.weight
        self.to(dtype)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = torch.tanh(layer(x)) * self.frozen
        return self.head(x).float()


def loss_of(model: nn.Module, seed: int) -> torch.Tensor:
    tokens = torch.randint(11, (8,), generator=torch.Generator().manual_seed(seed))
    tokens = tokens.to(next(model.parameters()).device)
    return nn.functional.cross_entropy(model(tokens), tokens.flip(0))


def options_of(case: Row) -> dict:
    """Options without clipping by the norm of all gradients."""
    off = {"AdamWeightDecay": "global_clipnorm", "create_optimizer": "adam_global_clipnorm"}
    return {off[case.name]: None} if case.name in off else {}


@each_backend
@every_optimizer
def test_bits_are_those_of_a_step_afterwards(row: Row, backend: str) -> None:
    turns = [(size, dtype) for size in BUCKETS for dtype in (torch.float32, torch.bfloat16)]
    for bucket_bytes, dtype in in_turns(turns, backend, ROWS.index(row), of=6):
        plain = Net(dtype).to(device_of(backend))
        hooked = copy.deepcopy(plain)
        first, second = (
            row.build(model, backend=backend, **options_of(row)) for model in (plain, hooked)
        )
        step_in_backward(hooked, second, bucket_bytes=bucket_bytes)
        for seed in range(2 if interpreted(backend) else 3):
            loss_of(plain, seed).backward()
            first.step()
            first.zero_grad()
            loss_of(hooked, seed).backward()
            assert all(p.grad is None for p in hooked.parameters())
        where = f"{bucket_bytes} {dtype}"
        assert_identical(snapshot(second), snapshot(first), where)


# --- memory and time ------------------------------------------------------------------------------


def held_bytes(model: nn.Module) -> int:
    return sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("bucket_bytes", BUCKETS)
def test_no_more_than_a_bucket_of_gradients_exists(bucket_bytes: int) -> None:
    model = Net()
    step_in_backward(model, fused_optim.AdamW(model.parameters()), bucket_bytes=bucket_bytes)
    largest = max(p.nbytes for p in model.parameters())
    most = 0
    for p in model.parameters():
        if p.requires_grad:  # these hooks come after ours, which may have freed some

            def note(param: torch.Tensor) -> None:
                nonlocal most
                most = max(most, held_bytes(model))

            p.register_post_accumulate_grad_hook(note)
    loss_of(model, 0).backward()
    assert most <= bucket_bytes + largest
    total = sum(p.nbytes for p in model.parameters() if p.requires_grad and p is not model.unused)
    assert most == {0: 0, 1 << 30: total}.get(bucket_bytes, most) and most < total + 1


def test_a_steady_pass_collects_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    optimizer = fused_optim.AdamW(model.parameters())
    step_in_backward(model, optimizer, bucket_bytes=1000)
    anew = []
    whole = type(optimizer)._step_anew
    monkeypatch.setattr(
        type(optimizer), "_step_anew", lambda self, *args: (anew.append(1), whole(self, *args))
    )
    counts = []
    for seed in range(4):
        loss_of(model, seed).backward()
        counts.append(len(anew))
    assert counts[0] == counts[-1] > 1


# --- what may stay in a loop ----------------------------------------------------------------------


def test_steps_schedules_and_zero_grad_may_stay() -> None:
    plain = Net()
    hooked = copy.deepcopy(plain)
    rates = []
    for model in (plain, hooked):
        optimizer = fused_optim.AdamW(model.parameters(), lr=0.1)
        scheduler = get_linear_schedule_with_warmup(optimizer, 2, 5)
        if model is hooked:
            step_in_backward(model, optimizer, bucket_bytes=1000)
        for seed in range(4):
            loss_of(model, seed).backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        rates.append(scheduler.get_last_lr())
    assert rates[0] == rates[1]
    for p, q in zip(plain.parameters(), hooked.parameters(), strict=True):
        assert torch.equal(p, q)


def test_removed_hooks_leave_gradients_alone() -> None:
    model = Net()
    handle = step_in_backward(model, fused_optim.AdamW(model.parameters()))
    handle.remove()
    before = model.head.weight.detach().clone()
    loss_of(model, 0).backward()
    assert torch.equal(model.head.weight, before) and model.head.weight.grad is not None


def test_a_pass_that_failed_does_not_leak_into_the_next() -> None:
    model = Net()
    optimizer = fused_optim.AdamWeightDecay(model.named_parameters(), learning_rate=lambda t: 0.1)
    step_in_backward(model, optimizer, bucket_bytes=1 << 30)
    failing = model.layers[0].weight.register_hook(lambda grad: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss_of(model, 0).backward()
    assert optimizer.param_groups[0]["iterations"] == 0
    failing.remove()
    optimizer.zero_grad()
    loss_of(model, 0).backward()
    assert optimizer.param_groups[0]["iterations"] == 1
    assert all(p.grad is None for p in model.parameters())


# --- what is refused ------------------------------------------------------------------------------


def test_combinations_that_would_be_wrong_are_refused_at_setup() -> None:
    model = Net()
    adamw = fused_optim.AdamW(model.parameters())
    clipping = fused_optim.AdamW(model.parameters(), max_grad_norm=1.0)
    keras = fused_optim.AdamWeightDecay(model.named_parameters(), global_clipnorm=1.0)
    for optimizer in (clipping, keras):
        with pytest.raises(ValueError, match="can't clip by the norm of all gradients"):
            step_in_backward(model, optimizer)
    with pytest.raises(ValueError, match="Invalid bucket_bytes: -1"):
        step_in_backward(model, adamw, bucket_bytes=-1)
    with pytest.raises(TypeError, match="an optimizer of fused_optim, not a torch.optim.sgd.SGD"):
        step_in_backward(model, torch.optim.SGD(model.parameters()))
    with pytest.raises(TypeError, match="should be a torch.nn.Module, but it is a list"):
        step_in_backward(list(model.parameters()), adamw)
    with pytest.raises(ValueError, match="updates no parameter of this model"):
        step_in_backward(nn.Linear(2, 2), adamw)
    half = Net(torch.float16)
    with pytest.raises(ValueError, match="parameter 0 of group 0 is float16, .* a GradScaler"):
        step_in_backward(half, fused_optim.AdamW(half.parameters()))
    loss_of(model, 0).backward()
    with pytest.raises(ValueError, match="has a gradient; step with it or set it to None"):
        step_in_backward(model, adamw)
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_float16_autocast_is_refused_before_anything_changed() -> None:
    model = Net()
    step_in_backward(model, fused_optim.AdamW(model.parameters()))
    with torch.autocast("cpu", torch.float16), pytest.raises(RuntimeError, match="GradScaler"):
        model(torch.ones(2, dtype=torch.long))
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(model, 0).backward()


def test_backward_passes_within_backward_passes_are_refused() -> None:
    layer = nn.Linear(4, 4)
    step_in_backward(layer, fused_optim.AdamW(layer.parameters()), bucket_bytes=0)
    before = layer.weight.detach().clone()
    for reentrant in (True, False):
        x = torch.ones(2, 4, requires_grad=True)
        for _ in range(2):
            x = checkpoint(layer, x, use_reentrant=reentrant)
        if reentrant:
            with pytest.raises(RuntimeError, match="use_reentrant=False"):
                x.sum().backward()
            assert torch.equal(layer.weight, before)
            layer.zero_grad()
        else:
            x.sum().backward()
            assert layer.weight.grad is None and not torch.equal(layer.weight, before)


def test_replicas_are_refused_at_setup_and_in_their_forward() -> None:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        layer = nn.Linear(4, 4)
        optimizer = fused_optim.AdamW(layer.parameters())
        replica = nn.parallel.DistributedDataParallel(layer)
        with pytest.raises(ValueError, match="can't be combined with DistributedDataParallel"):
            step_in_backward(replica, optimizer)
        handle = step_in_backward(layer, optimizer)
        with pytest.raises(RuntimeError, match="can't be combined with DistributedDataParallel"):
            replica(torch.ones(1, 4))
        handle.remove()
        replica(torch.ones(1, 4)).sum().backward()
        assert layer.weight.grad is not None
    finally:
        torch.distributed.destroy_process_group()
