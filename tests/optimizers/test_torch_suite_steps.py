"""torch's own optimizer tests, over our classes: what steps compute, with groups and schedulers."""

import copy

import cases
import pytest
import torch
from optimizer_table import assert_identical, snapshot
from torch.optim import lr_scheduler
from torch_suite import (
    CLASSES,
    Regression,
    assert_direction,
    network,
    over_inputs,
    torch_info,
)

pytestmark = pytest.mark.long


def follows_schedulers(case):
    return not case.own_schedule


def step_schedulers(schedulers, loss):
    for scheduler in schedulers:
        plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        scheduler.step(*([loss.detach()] if plateau else []))


# --- the right direction --------------------------------------------------------------------------


@over_inputs()
def test_forloop_goes_right_direction(case):
    for contiguous in (True, False):
        model = Regression(contiguous)
        optimizer, first = case.build(model.params), model.loss()
        model.train(optimizer, 20)
        assert_direction(case, first, model.loss())


@over_inputs(where=follows_schedulers)
def test_forloop_goes_right_direction_with_lrsched(case):
    for make_schedulers in torch_info(case.name).scheduler_inputs:
        model = Regression(contiguous=False)
        optimizer, first = case.build(model.params), model.loss()
        schedulers = [make(optimizer) for make in make_schedulers]
        for _ in range(20):
            loss = model.backward()
            optimizer.step()
            step_schedulers(schedulers, loss)
        assert_direction(case, first, model.loss())


@over_inputs(where=follows_schedulers)
def test_param_group_with_lrscheduler_goes_right_direction(case):
    for make_schedulers in torch_info(case.name).scheduler_inputs:
        model = Regression()
        optimizer = case.in_groups([[p] for p in model.params], {}, {"lr": 0.01})
        schedulers, first = [make(optimizer) for make in make_schedulers], model.loss()
        for _ in range(20):
            loss = optimizer.step(model.backward)
            step_schedulers(schedulers, loss)
        assert_direction(case, first, model.loss())


# --- groups and learning rates --------------------------------------------------------------------


@over_inputs()
def test_param_groups_weight_decay(case):
    """A group's weight decay is its own: the groups do what an optimizer for each of them does."""
    model = Regression()
    changes = {}, {"weight_decay": 0.0}
    together, first = case.in_groups([[p] for p in model.params], *changes), model.loss()
    twins = copy.deepcopy(model.params)
    apart = [case.build([p], **each) for p, each in zip(twins, changes, strict=True)]
    for _ in range(20):
        model.backward()
        for p, twin in zip(model.params, twins, strict=True):
            twin.grad = p.grad
        together.step()
        for optimizer in apart:
            optimizer.step()
        if not case.clips_globally:
            assert_identical([p.detach() for p in model.params], [p.detach() for p in twins])
    assert_direction(case, first, model.loss())


@over_inputs(where=follows_schedulers)
def test_param_groups_lr(case):
    model, irrelevant = Regression(), torch.nn.Parameter(torch.randn(2))
    before, first = irrelevant.detach().clone(), model.loss()
    optimizer = case.in_groups([model.params, [irrelevant]], {"lr": 1e-3}, {"lr": 1e-28})
    for _ in range(20):
        model.backward()
        irrelevant.grad = torch.rand_like(irrelevant)
        optimizer.step()
    assert_direction(case, first, model.loss())
    assert torch.equal(irrelevant.detach(), before)


@over_inputs(where=follows_schedulers)
def test_tensor_lr(case):
    numbers, tensors = Regression(), Regression()
    for p, q in zip(tensors.params, numbers.params, strict=True):
        p.data.copy_(q.data)
    tensors.input = numbers.input
    lr = torch.tensor(1e-3)
    optimizers = case.build(numbers.params, lr=lr.item()), case.build(tensors.params, lr=lr)
    for _ in range(5):
        for model, optimizer in zip((numbers, tensors), optimizers, strict=True):
            model.train(optimizer, 1)
        assert_identical([p.detach() for p in tensors.params], [p.detach() for p in numbers.params])
    assert torch.is_tensor(optimizers[1].param_groups[0]["lr"])
    assert lr == torch.tensor(1e-3)


# --- steps that change nothing --------------------------------------------------------------------


@over_inputs()
def test_step_is_noop_when_params_have_no_grad(case):
    params = [torch.randn(2, 3) for _ in range(2)]
    before, optimizer = copy.deepcopy(params), case.build(params)
    loss = torch.ones(1)
    assert optimizer.step(lambda: loss) is loss
    assert_identical(params, before)
    assert not optimizer.state


@over_inputs()
def test_step_is_noop_for_zero_grads(case):
    p = torch.nn.Parameter(torch.randn(5, 1))
    before = p.detach().clone()
    p.grad = torch.zeros_like(p)
    optimizer = case.build([p], weight_decay=0.0)
    optimizer.step()
    assert_identical(p.detach(), before)
    assert int(optimizer.state[p]["step"]) == 1


@over_inputs()
def test_fused_does_not_step_if_foundinf(case):
    """As a GradScaler sets it, whether or not it leaves unscaling to the step."""
    for scale in (None, torch.ones(1)):
        model = Regression()
        optimizer = case.build(model.params)
        model.train(optimizer, 1)
        before = snapshot(optimizer)[:2]
        optimizer.grad_scale, optimizer.found_inf = scale, torch.ones(())
        model.train(optimizer, 2)
        assert_identical(snapshot(optimizer)[:2], before)
        optimizer.found_inf = torch.zeros(())
        model.train(optimizer, 1)
        assert [int(optimizer.state[p]["step"]) for p in model.params] == [2, 2]


@over_inputs()
def test_grad_scaling_autocast_fused_optimizers(case):
    """Scaled training with an overflow on the way equals unscaled training without that step."""
    for fused_unscale in (False, True):
        plain, scaled = (network(torch.float32) for _ in range(2))
        optimizers = [case.build(model.parameters()) for model, _, _ in (plain, scaled)]
        optimizers[1].fused_unscale = fused_unscale
        # Far apart, so that no moment can be of gradients that were left scaled.
        scaler = torch.amp.GradScaler("cpu", 2.0**4, growth_factor=2.0**8, growth_interval=2)
        for step in range(5):
            losses = []
            for model, _, values in (plain, scaled):
                model.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    losses.append(model(values).float().square().sum())
            losses[0].backward()
            scaler.scale(losses[1]).backward()
            if step == 2:
                scaled[0][2].weight.grad.fill_(torch.inf)
            else:
                optimizers[0].step()
            scaler.step(optimizers[1])
            scaler.update()
        assert scaler.get_scale() == 2.0 ** (4 + 8 - 1 + 8)  # halved for the overflow
        for p, q in zip(scaled[0].parameters(), plain[0].parameters(), strict=True):
            torch.testing.assert_close(p, q)


# --- where and in what tensors are made -----------------------------------------------------------


@over_inputs()
def test_set_default_dtype_and_device(case):
    """A step makes no tensor where, or of what, torch's defaults happen to say."""
    expected = snapshot_under(case.build, torch.float32, "cpu")
    for dtype in (torch.float64, torch.float16):
        assert_identical(snapshot_under(case.build, dtype, "cpu"), expected)
    assert_identical(snapshot_under(case.build, torch.float32, "meta"), expected)


@cases.each_backend
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_set_default_dtype_and_device_on_every_backend(name, capturable, backend):
    def build(params):
        options = {"backend": backend, "capturable": capturable, "max_grad_norm": 1.0}
        return CLASSES[name](params, **options)

    where = cases.device_of(backend)
    expected = snapshot_under(build, torch.float32, "cpu", where)
    for dtype, device in ((torch.float64, "cpu"), (torch.float16, "cpu"), (torch.float32, "meta")):
        assert_identical(snapshot_under(build, dtype, device, where), expected)


def snapshot_under(build, dtype, device, where="cpu"):
    """Return parameters and state after steps and a load with these defaults of torch's."""
    params = [torch.nn.Parameter(torch.full((3, 2), float(i), device=where)) for i in range(2)]
    gradients = [[torch.full_like(p, 0.5 + step) for p in params] for step in range(3)]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            optimizer = build(params)
            for step in gradients:
                for p, grad in zip(params, step, strict=True):
                    p.grad = grad
                optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
            optimizer.step()
    finally:
        torch.set_default_dtype(before)
    return snapshot(optimizer)[:2]
