"""capturable: step counts, learning rates and rows on the device, and nothing read back."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import BACKENDS, device_of, each_backend

import fused_optim
from fused_optim import torch_compat
from fused_optim.ops import float_fields
from fused_optim.optimizers import validation
from fused_optim.plan import capture
from fused_optim.plan import records as plan_records

Make = Callable[..., torch.optim.Optimizer]

OPTIMIZERS: dict[str, tuple[Make, dict[str, Any]]] = {
    "AdamW": (fused_optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "AdamW-negative-decay": (fused_optim.AdamW, {"weight_decay": -0.1, "correct_bias": False}),
    "Adafactor": (fused_optim.Adafactor, {"beta1": 0.9, "weight_decay": 0.1}),
    "Adafactor-lr": (fused_optim.Adafactor, {"lr": 1e-2, "relative_step": False}),
    "Adafactor-warmup": (fused_optim.Adafactor, {"warmup_init": True, "scale_parameter": False}),
    "AdamWeightDecay": (
        fused_optim.AdamWeightDecay,
        {"weight_decay_rate": 0.1, "amsgrad": True, "clipvalue": 0.5},
    ),
    "torch-Adam": (torch_compat.Adam, {"weight_decay": 0.1}),
    "torch-AdamW": (torch_compat.AdamW, {"amsgrad": True, "maximize": True}),
    "torch-Adafactor": (torch_compat.Adafactor, {"weight_decay": 0.1}),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
# What only the plan decides on is not tried on Triton as well, whose interpreter is slow.
each_plan = pytest.mark.parametrize(
    "backend", [b for b in BACKENDS if b != "triton"] or BACKENDS, indirect=True
)
MODEL = (((9, 7), torch.float32), ((9,), torch.float32), ((5, 16), torch.bfloat16))


def built(name: str, backend: str, **more: Any) -> torch.optim.Optimizer:
    """An optimizer of two groups, the second with options of its own."""
    make, options = OPTIMIZERS[name]
    rng = torch.Generator().manual_seed(1)
    params = [
        torch.nn.Parameter(torch.randn(shape, generator=rng).to(device_of(backend), dtype))
        for shape, dtype in MODEL
    ]
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.2}]
    return make(groups, backend=backend, **{**options, **more})


def params_of(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def set_gradients(optimizer: torch.optim.Optimizer, t: int) -> None:
    """Gradients of step ``t``; the second parameter has none at every third step."""
    rng = torch.Generator().manual_seed(t)
    for index, p in enumerate(params_of(optimizer)):
        value = torch.randn(p.shape, generator=rng).to(p.device, p.dtype)
        p.grad = None if index == 1 and t % 3 == 2 else value


def train(optimizer: torch.optim.Optimizer, steps: range) -> None:
    for t in steps:
        set_gradients(optimizer, t)
        optimizer.step()


def assert_alike(first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
    """Equal but for the last bit of the rows' scalars, which the device may round another way."""
    for p, q in zip(params_of(first), params_of(second), strict=True):
        tolerance = 2.0**-7 if p.dtype is torch.bfloat16 else 1e-6
        torch.testing.assert_close(p, q, rtol=tolerance, atol=1e-6)
        assert int(first.state[p]["step"]) == int(second.state[q]["step"])


@each_backend
@every_optimizer
def test_it_trains_as_with_scalars_of_the_host(name: str, backend: str) -> None:
    if backend == "triton" and name not in ("AdamW", "Adafactor"):
        pytest.skip("its interpreter is slow, and no row reaches kernels other than these two's")
    plain, ours = built(name, backend), built(name, backend, capturable=True)
    start = params_of(ours)[0].detach().clone()
    for optimizer in (plain, ours):
        train(optimizer, range(4))
    assert_alike(ours, plain)
    assert not torch.equal(start, params_of(ours)[0])
    for p in params_of(ours):
        step = ours.state[p]["step"]
        assert step.dtype is torch.int64 and step.shape == () and step.device == p.device


@pytest.mark.parametrize("count", [1, 2, 1000, 2**31 + 5, 2**33 + 1])
@every_optimizer
def test_a_row_of_the_device_is_one_of_the_host(name: str, count: int) -> None:
    optimizer = built(name, "eager")
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 if group["lr"] is None else group["lr"]
        settings = optimizer.settings(group)
        row = optimizer._row(settings, count, torch.bfloat16)
        expected = torch.frombuffer(bytearray(plan_records.pack_rows([row])), dtype=torch.int32)
        steps = torch.tensor([1.0, count], dtype=torch.float64)
        table = capture.row_table(optimizer._row(settings, steps, torch.bfloat16), 2)
        assert table.shape == (2, 16) and table.dtype is torch.int32
        floats = float_fields(type(row))
        assert torch.equal(table[1, floats:], expected[floats:])
        # Of one sign, so neighbouring floats are neighbouring integers.
        assert (table[1, :floats] - expected[:floats]).abs().max() <= 1


@pytest.mark.parametrize("name", ["AdamW", "Adafactor-lr", "torch-AdamW", "AdamWeightDecay"])
@each_plan
def test_schedulers_write_the_tensor_in_place(name: str, backend: str) -> None:
    plain, ours = built(name, backend), built(name, backend, capturable=True)
    lrs = [group["lr"] for group in ours.param_groups]
    for optimizer in (plain, ours):
        schedule = fused_optim.get_linear_schedule_with_warmup(optimizer, 2, 6)
        for t in range(5):
            train(optimizer, range(t, t + 1))
            schedule.step()
    assert_alike(ours, plain)
    assert all(a is group["lr"] for a, group in zip(lrs, ours.param_groups, strict=True))
    assert float(lrs[0]) == pytest.approx(float(plain.param_groups[0]["lr"]))


@each_plan
def test_every_hyperparameter_may_be_a_tensor(backend: str) -> None:
    device = device_of(backend)
    values = {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-2, "weight_decay": 0.3}
    later = {"lr": 0.3, "betas": (0.0, 0.9), "eps": 1.0, "weight_decay": -1.0}

    def tensor(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64, device=device)

    params = [torch.nn.Parameter(torch.ones(4, device=device)) for _ in range(2)]
    live = {k: tuple(map(tensor, v)) if k == "betas" else tensor(v) for k, v in values.items()}
    ours = fused_optim.AdamW(params[:1], **live, backend=backend, capturable=True)
    plain = fused_optim.AdamW(params[1:], **values, backend=backend)
    for options in (values, later):
        plain.param_groups[0].update(options)
        for key, value in options.items():
            held = live[key] if key == "betas" else (live[key],)
            for each, new in zip(held, value if key == "betas" else (value,), strict=True):
                each.fill_(new)
        for optimizer in (ours, plain):
            params_of(optimizer)[0].grad = torch.full((4,), 0.5, device=device)
            optimizer.step()
    assert_alike(ours, plain)


@pytest.fixture
def nothing_is_read_back(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and reading a tensor's value is an error; `tolist` is for tables of the host."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a value was read back from the device")

    def start() -> None:
        for name in ("item", "__bool__", "__float__", "__int__", "__index__"):
            monkeypatch.setattr(torch.Tensor, name, refuse)

    return start


@pytest.mark.skipif(torch.cuda.is_available(), reason="set_sync_debug_mode tells there")
@pytest.mark.parametrize("name", ["AdamW", "torch-AdamW", "AdamWeightDecay"])
def test_rows_and_counts_need_nothing_read_back(name: str, nothing_is_read_back) -> None:
    optimizer = built(name, "eager", capturable=True)
    train(optimizer, range(1))
    steps = [optimizer.state[p]["step"] for p in params_of(optimizer)]
    nothing_is_read_back()
    capture.advance(steps, torch.tensor(0.0))
    capture.advance(steps, torch.tensor(1.0))
    counts = torch.stack(steps).to(torch.float64)
    settings = optimizer.settings(optimizer.param_groups[0])
    table = capture.row_table(optimizer._row(settings, counts, False), 3)
    assert table.shape == (3, 16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="set_sync_debug_mode tells there")
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b == "cuda"], indirect=True)
@pytest.mark.parametrize("name", ["AdamW", "torch-Adam", "torch-AdamW", "AdamWeightDecay"])
def test_a_step_reads_nothing_back(
    name: str, backend: str, nothing_is_read_back, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a CPU's tensors hold is checked at each step. Here they stand for a device's.
    monkeypatch.setattr(validation, "same_settings", lambda known, now: True)
    optimizer = built(name, backend, capturable=True, max_grad_norm=1.0)
    train(optimizer, range(1))
    set_gradients(optimizer, 1)
    optimizer.found_inf = torch.tensor(0.0)
    before = params_of(optimizer)[0].detach().clone()
    nothing_is_read_back()
    optimizer.step()
    assert (params_of(optimizer)[0].detach().numpy() != before.numpy()).any()


def test_settings_on_a_device_are_not_read_again() -> None:
    for device, same in (("meta", True), ("cpu", False)):
        settings = {"lr": torch.empty((), device=device), "params": [], "betas": (0.9, 0.999)}
        known = validation.settled(settings)
        assert validation.same_settings(known, dict(settings)) == same


@each_plan
@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "torch-AdamW"])
def test_an_overflow_leaves_counts_and_state_alone(name: str, backend: str) -> None:
    ours, plain = built(name, backend, capturable=True), built(name, backend)
    device = params_of(ours)[0].device
    for t, overflows in enumerate((2.0, 0.0, 1.0, 0.0)):  # 2 where two devices saw one each
        set_gradients(ours, t)
        ours.found_inf = torch.tensor(overflows, device=device)
        before = copy.deepcopy([(p.detach(), ours.state[p]) for p in params_of(ours)])
        ours.step()
        if overflows:
            for p, (value, state) in zip(params_of(ours), before, strict=True):
                assert torch.equal(p, value)
                for key, old in state.items():
                    assert torch.equal(ours.state[p][key], old), key
        else:
            train(plain, range(t, t + 1))
    assert_alike(ours, plain)


@each_plan
@every_optimizer
def test_a_step_that_creates_state_moves_nothing(name: str, backend: str) -> None:
    """As torch.distributed.checkpoint makes one: gradients of zero, lr 0 as a tensor of the CPU."""
    optimizer = built(name, backend, capturable=True)
    before = [p.detach().clone() for p in params_of(optimizer)]
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.0) if isinstance(group["lr"], torch.Tensor) else 0.0
    for p in params_of(optimizer):
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert all(map(torch.equal, params_of(optimizer), before))
    assert all("step" in optimizer.state[p] for p in params_of(optimizer))


@every_optimizer
def test_state_dicts_load_either_way(name: str) -> None:
    plain, ours = built(name, "eager"), built(name, "eager", capturable=True)
    for source, target in ((plain, ours), (ours, plain)):
        train(source, range(3))
        target.load_state_dict(copy.deepcopy(source.state_dict()))
        for p, q in zip(params_of(source), params_of(target), strict=True):
            q.data.copy_(p.data)
        for optimizer in (source, target):
            train(optimizer, range(3, 6))
        assert_alike(source, target)
    assert all(type(plain.state[p]["step"]) is int for p in params_of(plain))
    assert not any(isinstance(group["lr"], torch.Tensor) for group in plain.param_groups)
    lrs = [group["lr"] for group in ours.param_groups]
    assert all(lr is None or lr.dtype is torch.float64 for lr in lrs)


def test_a_kept_state_dict_does_not_follow_the_schedule() -> None:
    optimizer = built("AdamW", "eager", capturable=True)
    kept = optimizer.state_dict()
    optimizer.param_groups[0]["lr"].fill_(7.0)
    assert float(kept["param_groups"][0]["lr"]) == 1e-2


def test_torchs_capturable_state_loads_and_ours_loads_in_torch() -> None:
    theirs = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))], lr=0.1, foreach=False)
    ours = torch_compat.AdamW([torch.nn.Parameter(torch.ones(3))], lr=0.1, capturable=True)
    for optimizer in (theirs, ours):
        params_of(optimizer)[0].grad = torch.ones(3)
        optimizer.step()
    saved = theirs.state_dict()
    saved["param_groups"][0]["capturable"] = True
    again = copy.deepcopy(ours.state_dict())
    ours.load_state_dict(saved)
    assert ours.state[params_of(ours)[0]]["step"].dtype is torch.int64
    again["param_groups"][0]["capturable"] = False
    theirs.load_state_dict(again)
    for optimizer in (theirs, ours):
        optimizer.step()
    torch.testing.assert_close(params_of(ours)[0], params_of(theirs)[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on(copied: Callable) -> None:
    optimizer = built("AdamW", "eager", capturable=True)
    train(optimizer, range(2))
    other = copied(optimizer)
    for each in (optimizer, other):
        train(each, range(2, 4))
    assert_alike(optimizer, other)


def test_groups_with_and_without_share_an_optimizer() -> None:
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    groups = [{"params": params[:1], "capturable": True}, {"params": params[1:]}]
    optimizer = fused_optim.AdamW(groups, lr=0.1)
    train(optimizer, range(2))
    assert isinstance(optimizer.state[params[0]]["step"], torch.Tensor)
    assert optimizer.state[params[1]]["step"] == 2
    optimizer.found_inf = torch.tensor(1.0)
    before = [p.detach().clone() for p in params]
    train(optimizer, range(1))
    assert all(map(torch.equal, params, before))
    assert [int(optimizer.state[p]["step"]) for p in params] == [2, 2]


@each_plan
def test_groups_of_one_launch_have_rows_of_their_own(backend: str) -> None:
    results = []
    for capturable_ in (False, True):
        ones = [torch.ones(4, device=device_of(backend)) for _ in range(4)]
        params = [torch.nn.Parameter(value) for value in ones]
        rates = ((0.1, params[:2]), (0.3, params[2:]))
        groups = [{"params": some, "lr": lr} for lr, some in rates]
        optimizer = fused_optim.AdamW(groups, backend=backend, capturable=capturable_)
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        results.append([float(param.detach()[0]) for param in params])
    assert results[1] == pytest.approx(results[0], rel=1e-6)
    assert results[0] == pytest.approx([0.9, 0.9, 0.7, 0.7], rel=1e-4)


def test_a_loaded_learning_rate_is_no_ones_else() -> None:
    """Neither the dict's tensor nor its own twin's: schedules write to it in place."""
    optimizer, saved = built("AdamW", "eager", capturable=True), built("AdamW", "eager")
    state = saved.state_dict()
    for group in state["param_groups"]:
        group["lr"] = torch.tensor(0.3, dtype=torch.float64)
    optimizer.load_state_dict(state)
    optimizer.param_groups[0]["lr"].fill_(0.5)
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.5, 0.3]
    assert [float(group["lr"]) for group in state["param_groups"]] == [0.3, 0.3]


def test_a_learning_rate_keeps_its_bits() -> None:
    optimizer = built("AdamW", "eager", capturable=True, lr=0.1)
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.1, 0.1]


def test_betas_of_the_device_stay_there() -> None:
    betas = tuple(torch.tensor(beta, dtype=torch.float64) for beta in (0.9, 0.99))
    params = [torch.nn.Parameter(torch.ones(3))]
    optimizer = torch_compat.AdamW(params, betas=betas, capturable=True)
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["betas"], betas, strict=True))


def test_rows_have_their_float_fields_first() -> None:
    for row in (fused_optim.ops.AdamWRow, fused_optim.ops.AdafactorRow):
        kinds = [field.type for field in dataclasses.fields(row)]
        count = float_fields(row)
        assert kinds == ["float"] * count + ["int"] * (len(kinds) - count)
    assert math.isinf(fused_optim.ops.AdamWRow().clip_value)
