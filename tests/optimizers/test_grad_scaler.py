"""torch's GradScaler: with float16 parameters through the fused protocol, else through unscale_."""

import pytest
import torch
from optimizer_table import (
    assert_identical,
    every_optimizer,
    parameters,
    params_of,
    row,
    set_gradients,
    snapshot,
    train,
)

from fused_optim import AdamW, torch_compat

SCALE = 8.0


def grad_scaler():
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1000)
    scaler.scale(torch.ones(()))  # it makes its tensors on the first use
    return scaler


def set_scaled_gradients(optimizer, step, scale=SCALE):
    set_gradients(params_of(optimizer), step)
    for p in params_of(optimizer):
        p.grad.mul_(scale)


def poison(optimizer, value=float("inf")):
    params_of(optimizer)[-1].grad.view(-1)[0] = value


@every_optimizer
def test_float16_parameters_train_scaled(row):
    scaled, plain = row.build(parameters(torch.float16)), row.build(parameters(torch.float16))
    assert scaled._step_supports_amp_scaling
    scaler = grad_scaler()
    for step in (1, 2, 3):
        set_scaled_gradients(scaled, step)
        given = [p.grad.clone() for p in params_of(scaled)]
        assert scaler.step(scaled) is None
        scaler.update()
        assert_identical([p.grad for p in params_of(scaled)], given)
        assert not hasattr(scaled, "grad_scale") and not hasattr(scaled, "found_inf")
        train(plain, [step])
    assert_identical(snapshot(scaled), snapshot(plain))
    assert scaler.get_scale() == SCALE


@every_optimizer
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("mode", ["master", "stochastic", "kahan", "nearest"])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_an_overflow_changes_nothing_at_all(row, value, mode, steps_before):
    optimizer = row.build(parameters(torch.float16), low_precision=mode)
    train(optimizer, range(1, steps_before + 1))
    before, scaler = snapshot(optimizer), grad_scaler()
    set_scaled_gradients(optimizer, 7)
    poison(optimizer, value)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == SCALE / 2
    assert_identical(snapshot(optimizer), before)  # step counts and schedules included
    twin = row.build(parameters(torch.float16), low_precision=mode)
    train(twin, range(1, steps_before + 1))
    train(optimizer, [8])
    train(twin, [8])
    assert_identical(snapshot(optimizer), snapshot(twin))


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_parameters_are_unscaled_first_and_may_be_clipped(row, dtype):
    scaled = row.build(parameters(dtype), low_precision="auto")
    plain = row.build(parameters(dtype), low_precision="auto")
    assert not scaled._step_supports_amp_scaling
    scaler = grad_scaler()
    for step in (1, 2):
        set_scaled_gradients(scaled, step)
        scaler.unscale_(scaled)
        torch.nn.utils.clip_grad_norm_(params_of(scaled), 1.0)
        scaler.step(scaled)
        scaler.update()
        set_gradients(params_of(plain), step)
        torch.nn.utils.clip_grad_norm_(params_of(plain), 1.0)
        plain.step()
    assert_identical(snapshot(scaled), snapshot(plain))
    before = snapshot(scaled)
    set_scaled_gradients(scaled, 3)
    poison(scaled)
    assert scaler.step(scaled) is None
    scaler.update()
    assert scaler.get_scale() == SCALE / 2
    assert_identical(snapshot(scaled), before)


@pytest.mark.parametrize("dtypes", [(torch.float16,), (torch.float32, torch.float16)])
def test_one_float16_parameter_is_enough_in_any_group(dtypes):
    groups = [{"params": parameters(dtype)} for dtype in dtypes]
    assert AdamW(groups)._step_supports_amp_scaling
    optimizer = AdamW(parameters())
    assert not optimizer._step_supports_amp_scaling
    optimizer.add_param_group({"params": parameters(torch.float16, seed=1)})
    assert optimizer._step_supports_amp_scaling


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unscaling_in_the_step_may_be_asked_for(row, dtype):
    scaled, plain = row.build(parameters(dtype)), row.build(parameters(dtype))
    scaled.fused_unscale = True
    assert scaled._step_supports_amp_scaling
    scaler = grad_scaler()
    for step, unscale_first in ((1, False), (2, True)):
        set_scaled_gradients(scaled, step)
        if unscale_first:  # then the scaler sets grad_scale to None
            scaler.unscale_(scaled)
        scaler.step(scaled)
        scaler.update()
        train(plain, [step])
        for p, q in zip(params_of(scaled), params_of(plain), strict=True):
            # torch's own operator, which the plain run may use, rounds otherwise than ours.
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
            assert scaled.state[p]["step"] == step


@every_optimizer
def test_a_grad_scale_of_the_users_own_multiplies_the_scalers(row):
    scaled, plain = row.build(parameters(torch.float16)), row.build(parameters(torch.float16))
    scaled.grad_scale = torch.tensor(2.0)
    scaler = grad_scaler()
    set_scaled_gradients(scaled, 1, 2.0 * SCALE)
    scaler.step(scaled)
    train(plain, [1])
    assert_identical(snapshot(scaled), snapshot(plain))


@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "torch-AdamW"])
def test_clipping_in_the_step_sees_unscaled_gradients(name):
    options = {"max_grad_norm": 0.5}
    scaled = row(name).build(parameters(torch.float16), **options)
    plain = row(name).build(parameters(torch.float16), **options)
    scaler = grad_scaler()
    set_scaled_gradients(scaled, 1)
    scaler.step(scaled)
    train(plain, [1])
    assert_identical(snapshot(scaled), snapshot(plain))
    assert scaled.grad_norm.item() == plain.grad_norm.item()
    grads = torch.cat([p.grad.flatten().double() for p in params_of(plain)])
    torch.testing.assert_close(scaled.grad_norm.double(), grads.norm(), rtol=1e-6, atol=0.0)


def test_scaled_training_equals_torchs_fused():
    """Through autograd and autocast's usual loop, one overflow included."""

    def run(make):
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        model = model.double()
        optimizer = make(model.parameters(), lr=1e-2)
        if hasattr(optimizer, "fused_unscale"):
            optimizer.fused_unscale = True
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=2)
        for step in range(6):
            optimizer.zero_grad()
            loss = model(torch.randn(5, 4, dtype=torch.float64)).square().mean()
            scaler.scale(loss * (float("inf") if step == 3 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
        return [p.detach() for p in model.parameters()], scaler.get_scale()

    ours, scale = run(torch_compat.AdamW)
    theirs, expected_scale = run(lambda params, lr: torch.optim.AdamW(params, lr=lr, fused=True))
    assert scale == expected_scale
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)
