"""What torch promises of every optimizer: closures, hooks, groups, copies, schedulers."""

import copy
import pickle

import pytest
import torch
from optimizer_table import (
    ROWS,
    assert_identical,
    every_optimizer,
    parameters,
    params_of,
    set_gradients,
    snapshot,
    train,
)

from fused_optim.schedules import get_linear_schedule_with_warmup


@every_optimizer
def test_is_a_torch_optimizer_with_torchs_methods(row):
    optimizer = row.build(parameters())
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert not optimizer.state  # lazy
    train(optimizer, [1])
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in params_of(optimizer))
    optimizer.zero_grad()
    assert all(p.grad is None for p in params_of(optimizer))


@every_optimizer
def test_a_closure_runs_with_gradients_and_its_value_is_returned(row):
    (p,) = parameters(shapes=[(3, 2)])
    optimizer = row.build([p])
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        calls.append(loss)
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [loss]
    assert optimizer.state[p]["step"] == 1
    assert optimizer.step(closure=closure) is calls[1]
    assert optimizer.step(None) is None  # positional, as accelerate does
    assert optimizer.step(closure=None) is None  # and as torch.distributed.checkpoint does
    assert optimizer.state[p]["step"] == 4


@every_optimizer
def test_step_records_no_history_and_leaves_gradients_alone(row):
    optimizer = row.build(parameters())
    set_gradients(params_of(optimizer), 1)
    before = [p.grad.clone() for p in params_of(optimizer)]
    optimizer.step()
    for p, grad in zip(params_of(optimizer), before, strict=True):
        assert p.is_leaf and p.requires_grad
        assert torch.equal(p.grad, grad)
        tensors = [v for v in optimizer.state[p].values() if isinstance(v, torch.Tensor)]
        assert tensors and not any(t.requires_grad for t in tensors)


@every_optimizer
def test_step_hooks_run_once_each_and_may_replace_arguments(row):
    optimizer = row.build(parameters())
    seen = []

    def pre(opt, args, kwargs):
        seen.append(("pre", opt, args, kwargs))
        return args, {"closure": lambda: 5.0}

    def post(opt, args, kwargs):
        seen.append(("post", opt, args, dict(kwargs)))

    handles = [optimizer.register_step_pre_hook(pre), optimizer.register_step_post_hook(post)]
    assert optimizer.step() == 5.0
    assert [call[0] for call in seen] == ["pre", "post"]
    assert seen[0][1] is seen[1][1] is optimizer
    assert "closure" in seen[1][3]
    for handle in handles:
        handle.remove()
    assert optimizer.step() is None
    assert len(seen) == 2


@every_optimizer
def test_the_profiler_sees_one_step(row):
    optimizer = row.build(parameters())
    set_gradients(params_of(optimizer), 1)
    with torch.profiler.profile() as profile:
        optimizer.step()
        optimizer.zero_grad()
    counts = {event.key: event.count for event in profile.key_averages()}
    name = type(optimizer).__name__
    assert counts[f"Optimizer.step#{name}.step"] == 1
    assert counts[f"Optimizer.zero_grad#{name}.zero_grad"] == 1


@every_optimizer
def test_init_state_makes_what_the_first_step_would_and_moves_nothing(row):
    lazy, eager = row.build(parameters()), row.build(parameters())
    before = snapshot(eager)[0]
    eager.init_state()
    assert_identical(snapshot(eager)[0], before)
    assert all(eager.state[p]["step"] == 0 for p in params_of(eager))
    created = [
        {k: (v.dtype, v.shape) for k, v in eager.state[p].items() if k != "step"}
        for p in params_of(eager)
    ]
    train(lazy, [1])
    train(eager, [1])
    assert_identical(snapshot(eager), snapshot(lazy))
    for p, made in zip(params_of(lazy), created, strict=True):
        assert {k: (v.dtype, v.shape) for k, v in lazy.state[p].items() if k != "step"} == made


@every_optimizer
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_go_on_alike_and_apart(row, copier, dtype):
    optimizer = row.build(parameters(dtype), seed=7, max_grad_norm=None)
    optimizer.fused_unscale = True
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))  # as torch's, not copied
    train(optimizer, [1, 2])
    twin = copier(optimizer)
    assert type(twin) is type(optimizer)
    assert twin.seed == 7 and twin.fused_unscale and twin.backend == optimizer.backend
    before = snapshot(optimizer)
    train(twin, [3, 4])
    assert_identical(snapshot(optimizer), before)
    assert len(calls) == 2
    train(optimizer, [3, 4])
    assert_identical(snapshot(twin), snapshot(optimizer))
    twin.register_step_post_hook(lambda *_: None)
    twin.add_param_group({"params": [("new", p) if row.named else p for p in parameters(seed=1)]})
    assert len(optimizer.param_groups) == 1


@every_optimizer
def test_an_unpickled_optimizer_of_an_older_version_goes_on(row):
    """0.1.0 kept all options in the groups and the defaults, and had no clip_group."""
    optimizer = row.build(parameters(torch.bfloat16), low_precision="kahan")
    train(optimizer, [1])
    pickled = copy.deepcopy(optimizer.__getstate__())
    for name in ("clip_group", "grad_norm", "_options"):
        del pickled[name]
    pickled["defaults"] = optimizer.settings(pickled["defaults"])
    pickled["param_groups"] = [optimizer.settings(group) for group in pickled["param_groups"]]
    for group in pickled["param_groups"]:
        del group["maximize"]
    twin = type(optimizer).__new__(type(optimizer))
    twin.__setstate__(pickled)
    assert twin.settings(twin.param_groups[0])["maximize"] is False
    train(optimizer, [2])
    train(twin, [2])
    assert_identical(snapshot(twin)[:2], snapshot(optimizer)[:2])


@every_optimizer
@pytest.mark.parametrize("again", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_have_the_same_public_attributes(row, again):
    for options in ({}, {} if "norm" in str(row.kwargs) else {"max_grad_norm": 1.0}):
        optimizer = row.build(parameters(), **options)
        train(optimizer, [1])
        public = {name for name in vars(optimizer) if not name.startswith("_")}
        twin = again(optimizer)
        assert {name for name in vars(twin) if not name.startswith("_")} == public


@pytest.mark.parametrize(
    "row", [row for row in ROWS if not row.own_schedule], ids=lambda row: row.name
)
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: get_linear_schedule_with_warmup(o, 2, 10),
        lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
    ],
    ids=["ours", "StepLR", "ExponentialLR"],
)
def test_schedulers_drive_the_learning_rate(row, schedule):
    optimizer, plain = row.build(parameters()), row.build(parameters())
    scheduler = schedule(optimizer)
    for step in (1, 2, 3):
        plain.param_groups[0]["lr"] = scheduler.get_last_lr()[0]
        train(optimizer, [step])
        train(plain, [step])
        scheduler.step()
    assert_identical(snapshot(optimizer)[:2], snapshot(plain)[:2])


@every_optimizer
def test_repr_shows_every_option(row):
    optimizer = row.build([{"params": parameters()}, {"params": parameters(seed=1)}])
    text = repr(optimizer)
    assert text.startswith(f"{type(optimizer).__name__} (\nParameter Group 0\n")
    for name in optimizer.defaults:
        assert text.count(f"    {name}: ") == 2


@every_optimizer
def test_groups_hold_names_and_options_given_or_default(row):
    first, second = (
        [(f"{i}.weight", p) for i, p in enumerate(parameters(seed=seed))] for seed in (0, 1)
    )
    groups = [{"params": iter(first)}, {"params": second, "maximize": True}]
    optimizer = row.build(groups)
    for group, named in zip(optimizer.param_groups, (first, second), strict=True):
        assert group["param_names"] == [name for name, _ in named]
        assert all(p is q for p, (_, q) in zip(group["params"], named, strict=True))
        assert optimizer.defaults.keys() <= group.keys()
        assert "betas" in group or "eps" in group
    found = [optimizer.settings(group) for group in optimizer.param_groups]
    assert [group["maximize"] for group in found] == [False, True]
    assert optimizer.state_dict()["param_groups"][1]["param_names"] == [n for n, _ in second]
