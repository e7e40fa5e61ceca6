"""Which parameters a step moves: with gradients, without, elsewhere, empty, frozen, new."""

import copy

import pytest
import torch
from optimizer_table import (
    assert_identical,
    every_optimizer,
    parameters,
    params_of,
    set_gradients,
    snapshot,
    train,
)

from fused_optim import torch_compat

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@every_optimizer
def test_a_group_added_in_the_middle_starts_at_its_own_first_step(row):
    params = parameters()
    early, late = row.build(params[:2]), row.build(parameters()[2:])
    train(early, [1, 2])
    extra = list(params[2:])
    if row.named:
        extra = [(f"late{i}", p) for i, p in enumerate(extra)]
    early.add_param_group({"params": extra})
    assert early.param_groups[1].keys() == early.param_groups[0].keys()
    assert len(early.param_groups) == 2
    set_gradients(params, 3)
    early.step()
    assert [early.state[p]["step"] for p in params] == [3, 3, 1, 1]
    if not row.named:  # those follow a schedule and clip over everything
        for p, q in zip(params[2:], params_of(late), strict=True):
            q.grad = p.grad
        late.step()
        assert_identical(snapshot(early)[0][2:], snapshot(late)[0])


@every_optimizer
def test_parameters_without_gradients_are_left_alone(row):
    optimizer = row.build(parameters())
    still = params_of(optimizer)[1]
    before = still.detach().clone()
    train(optimizer, [1, 2], skip=[1])
    assert torch.equal(still, before)
    assert not optimizer.state[still]
    train(optimizer, [3])
    assert not torch.equal(still, before) or row.name in ("Adafactor-momentum",)
    assert [optimizer.state[p]["step"] for p in params_of(optimizer)] == [3, 1, 3, 3]
    train(optimizer, [4], skip=[0, 1, 2, 3])
    assert [optimizer.state[p]["step"] for p in params_of(optimizer)] == [3, 1, 3, 3]


def test_freezing_unfreezing_and_adding_groups_equals_torch():
    """One step count for all, as fused optimizers once had, gives wrong bias corrections here."""

    def run(make):
        params = parameters(torch.float64)
        optimizer = make(params[:3], lr=1e-2, weight_decay=0.1)
        for step in range(1, 13):
            if step == 5:
                optimizer.add_param_group({"params": params[3:], "lr": 3e-2})
            set_gradients(params, step)
            params[1].requires_grad_(step > 7)
            for p in (params[0] if step % 2 else None, params[1] if step <= 7 else None):
                if p is not None:
                    p.grad = None
            optimizer.step()
        return params

    pairs = zip(run(torch_compat.AdamW), run(torch.optim.AdamW), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


@every_optimizer
@pytest.mark.parametrize("keep_grad", [True, False])
def test_main_grad_wins(row, keep_grad):
    plain, other = row.build(parameters(torch.bfloat16)), row.build(parameters(torch.bfloat16))
    for step in (1, 2):
        set_gradients(params_of(plain), step)
        plain.step()
        for p, q in zip(params_of(other), params_of(plain), strict=True):
            p.main_grad = q.grad.float()
            p.grad = torch.full_like(p, 7.0) if keep_grad else None
        other.step()
    assert_identical(snapshot(other), snapshot(plain))
    for p in params_of(other):
        p.main_grad = None
    train(other, [3])
    train(plain, [3])
    assert_identical(snapshot(other), snapshot(plain))


@every_optimizer
@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="needs torch's grad_dtype")
def test_gradients_may_have_another_dtype_than_their_parameters(row):
    """torch's fused AdamW raises for float32 parameters with bfloat16 gradients."""
    ours, plain = row.build(parameters()), row.build(parameters())
    for p in params_of(ours):
        p.grad_dtype = torch.bfloat16
    for step in (1, 2):
        set_gradients(params_of(plain), step)
        for p, q in zip(params_of(ours), params_of(plain), strict=True):
            q.grad = q.grad.bfloat16().float()
            p.grad = q.grad.bfloat16()
        ours.step()
        plain.step()
    for p, q in zip(params_of(ours), params_of(plain), strict=True):
        # The plain run may use torch's own operator, which rounds otherwise.
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        assert p.grad.dtype is torch.bfloat16


@every_optimizer
@DTYPES
def test_empty_tensors_change_nothing_but_count_their_steps(row, dtype):
    """Empty tensors, first and last too, once made fused kernels skip their neighbours."""
    empties = {0: (0,), 2: (0, 3), 4: (2, 0, 4), 7: (3, 0)}
    full = parameters(dtype)
    mixed, rest = [], iter(parameters(dtype))
    for i in range(len(full) + len(empties)):
        shape = empties.get(i)
        mixed.append(
            next(rest) if shape is None else torch.nn.Parameter(torch.empty(shape).to(dtype))
        )
    options = {} if row.named else {"max_grad_norm": 2.0}
    ours, plain = (row.build(p, low_precision="auto", **options) for p in (mixed, full))
    for step in (1, 2, 3):
        train(plain, [step])
        for p in mixed:
            p.grad = torch.zeros_like(p)
        for p, q in zip([p for p in mixed if p.numel()], full, strict=True):
            p.grad = q.grad
        ours.step()
    assert [ours.state[p]["step"] for p in mixed] == [3] * len(mixed)
    kept = snapshot(ours)
    for part in kept[:2]:
        part[:] = [x for i, x in enumerate(part) if i not in empties]
    if dtype is torch.bfloat16 and row.name.startswith("torch-"):
        return  # bfloat16 moments are rounded by parameter number
    if row.named:
        kept[2], names = copy.deepcopy(kept[2]), plain.param_groups[0]["param_names"]
        kept[2][0]["param_names"] = names
    assert_identical(kept, snapshot(plain))


@every_optimizer
def test_only_empty_tensors(row):
    optimizer = row.build([torch.nn.Parameter(torch.empty(0, 3))], max_grad_norm=None)
    train(optimizer, [1, 2])
    assert optimizer.state[params_of(optimizer)[0]]["step"] == 2
