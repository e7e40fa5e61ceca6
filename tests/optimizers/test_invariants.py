"""What a step takes for granted, violated between steps: seen in time, and nothing is lost.

A step that finds all as it was takes its tables from the step before, so most of these happen after
two steps as well as after none.
"""

from __future__ import annotations

import collections
import copy
import gc
import weakref
from collections.abc import Callable
from fractions import Fraction
from typing import Any
from unittest import mock

import pytest
import torch
from cases import each_backend
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

import fused_optim
from fused_optim import torch_compat
from fused_optim.plan import upload as plan_upload
from fused_optim.plan.tables import Plan

STEPS = pytest.mark.parametrize("steps", [0, 1, 3], ids=["new", "second", "steady"])
AROUND = 64


def assert_raises_and_changes_nothing(
    optimizer: torch.optim.Optimizer,
    message: str,
    kinds: Any = ValueError,
    call: Callable[[], Any] | None = None,
) -> None:
    before = snapshot(optimizer)
    with pytest.raises(kinds, match=message):
        (call or optimizer.step)()
    assert_identical(snapshot(optimizer)[:2], before[:2])
    counts = [group.get("iterations") for group in optimizer.param_groups]
    assert counts == [group.get("iterations") for group in before[2]]


# --- memory ----------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("name", ["AdamW", "torch-AdamW"])
def test_a_parameter_of_another_dtype_at_the_same_address(name: str, backend: str) -> None:
    """A float32 gradient goes with either, where autograd is told so."""
    if not hasattr(torch.Tensor, "grad_dtype"):
        pytest.skip("this torch lets a gradient have its parameter's dtype alone")
    pool = torch.zeros(4096, dtype=torch.uint8)
    p = torch.nn.Parameter(pool[:2048].view(torch.float32))
    p.grad_dtype = torch.float32
    optimizer = row(name).build([p], backend=backend)
    for _ in range(3):
        p.grad = torch.ones(512)
        optimizer.step()
    p.data = pool[:1024].view(torch.bfloat16)
    with torch.no_grad():
        p.fill_(1.0)
    pool[1024:].zero_()
    optimizer.step()
    assert not pool[1024:].any()
    assert p.float().sub(1).abs().max() < 0.1


@every_optimizer
def test_a_parameter_in_another_shape_whose_gradient_stayed(row) -> None:
    optimizer = row.build(parameters(shapes=((4, 4),)))
    train(optimizer, [1, 2, 3])
    (p,) = params_of(optimizer)
    p.data = p.data.view(2, 8)
    assert_raises_and_changes_nothing(optimizer, "gradient of parameter 0.*shape", RuntimeError)


@each_backend
@STEPS
def test_gradients_that_show_their_memory_negated_or_have_none(steps: int, backend: str) -> None:
    """As autograd gives them for what comes of complex numbers."""
    make = lambda: [torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(3, 2))]  # noqa: E731
    ours, plain = (torch_compat.AdamW(make(), lr=0.1, backend=backend) for _ in range(2))
    for optimizer in (ours, plain):
        train(optimizer, range(steps))
    for step in range(2):
        set_gradients(params_of(plain), 7 + step)
        params_of(plain)[1].grad.zero_()
        a, b = params_of(ours)
        a.grad = torch._neg_view(-params_of(plain)[0].grad)
        b.grad = torch._efficientzerotensor((3, 2))
        assert a.grad.is_neg() and b.grad._is_zerotensor()
        ours.step()
        plain.step()
        assert_identical(snapshot(ours)[:2], snapshot(plain)[:2])


@every_optimizer
def test_a_parameter_that_shows_its_memory_negated_is_refused(row) -> None:
    imaginary = torch.complex(torch.ones(3), torch.ones(3)).conj().imag
    with pytest.raises(ValueError, match=r"parameter 0.* negated; pass p.resolve_neg\(\)"):
        row.build([imaginary.detach().requires_grad_()])


@each_backend
@STEPS
def test_gradients_in_a_buffer_that_was_freed(steps: int, backend: str) -> None:
    optimizer = torch_compat.AdamW(parameters(shapes=((8,), (8,))), backend=backend)
    train(optimizer, range(steps))
    flat = torch.randn(24)
    for index, p in enumerate(params_of(optimizer), 1):
        p.grad = flat[8 * index : 8 * index + 8]
    if steps:
        optimizer.step()
    flat.untyped_storage().resize_(0)
    assert_raises_and_changes_nothing(
        optimizer, "gradient of parameter 0.* needs 64 bytes, but its memory has 0", RuntimeError
    )


# --- steps that raise ------------------------------------------------------------------------


@each_backend
def test_a_step_after_one_that_raised_is_the_one_that_was_due(backend: str) -> None:
    """In buckets of two dtypes: none of them may count alone."""
    if backend == "eager":
        pytest.skip("eager uploads no tables")
    both = [
        torch_compat.AdamW(
            [*parameters(shapes=((4,),)), *parameters(torch.bfloat16, shapes=((4,),))],
            backend=backend,
        )
        for _ in range(2)
    ]
    for optimizer in both:
        train(optimizer, [1, 2, 3])
    broken, whole = both
    set_gradients(params_of(broken), 4)
    broken.param_groups[0]["lr"] = whole.param_groups[0]["lr"] = 0.25
    calls, real = [], Plan.set_rows

    def set_rows(plan: Plan, rows: list) -> None:
        calls.append(rows)
        if len(calls) == 2:
            raise RuntimeError("no pinned memory")
        real(plan, rows)

    with mock.patch.object(Plan, "set_rows", set_rows):
        assert_raises_and_changes_nothing(broken, "no pinned memory", RuntimeError)
    for optimizer in both:
        train(optimizer, [4, 5])
    assert_identical(snapshot(broken)[:2], snapshot(whole)[:2])


@each_backend
def test_a_gradients_address_that_was_not_uploaded_is_uploaded_next(backend: str) -> None:
    if backend == "eager":
        pytest.skip("eager uploads no tables")
    broken, whole = (
        torch_compat.AdamW(parameters(shapes=((8,),)), backend=backend) for _ in range(2)
    )
    for optimizer in (broken, whole):
        train(optimizer, [1, 2, 3])
    kept = params_of(broken)[0].grad  # so that the next one has another address
    set_gradients(params_of(broken), 4)
    with mock.patch.object(plan_upload, "upload_", side_effect=RuntimeError("not now")):
        with pytest.raises(RuntimeError, match="not now"):
            broken.step()
    broken.step()
    train(whole, [4])
    assert_identical(snapshot(broken)[:2], snapshot(whole)[:2])
    assert kept.numel() == 8


@every_optimizer
@STEPS
def test_a_hyperparameter_that_was_taken_out_is_missed(row, steps: int) -> None:
    optimizer = row.build(parameters())
    train(optimizer, range(steps))
    set_gradients(params_of(optimizer), 7)
    (group,) = optimizer.param_groups
    for key in optimizer.defaults.keys() - {"differentiable"}:
        kept = group.pop(key)
        message = f"group 0: '{key}' is missing; set group"
        before = snapshot(optimizer)
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        assert_identical(snapshot(optimizer), before)
        group[key] = kept
    train(optimizer, [8])


@STEPS
def test_tensors_within_a_tuple_are_looked_at_in_every_step(steps: int) -> None:
    beta = torch.tensor(0.9)
    optimizer = fused_optim.AdamW(parameters(), betas=(beta, 0.99))
    train(optimizer, range(steps))
    set_gradients(params_of(optimizer), 7)
    for value in (1.0, 1.5):
        beta.fill_(value)
        assert_raises_and_changes_nothing(optimizer, "Invalid beta parameter at index 0")


@STEPS
@pytest.mark.parametrize(
    "name,value,kinds",
    [
        ("max_grad_norm", -1.0, ValueError),
        ("max_grad_norm", "1.0", ValueError),
        ("seed", -1, ValueError),
        ("seed", None, ValueError),
        ("backend", "nonsense", ValueError),
        ("clip_group", "world", TypeError),
    ],
)
def test_attributes_are_checked_when_they_changed(steps: int, name, value, kinds) -> None:
    optimizer = fused_optim.AdamW(parameters(torch.bfloat16), max_grad_norm=1.0)
    train(optimizer, range(steps))
    set_gradients(params_of(optimizer), 7)
    setattr(optimizer, name, value)
    assert_raises_and_changes_nothing(optimizer, name, kinds)


@STEPS
@pytest.mark.parametrize("name", ["clipnorm", "global_clipnorm", "decay"])
@pytest.mark.parametrize("value", [-1.0, "1"])
def test_keras_attributes_are_checked_when_they_changed(steps: int, name: str, value) -> None:
    optimizer = fused_optim.AdamWeightDecay(parameters())
    train(optimizer, range(steps))
    set_gradients(params_of(optimizer), 7)
    setattr(optimizer, name, value)
    assert_raises_and_changes_nothing(optimizer, f"Expected {name} >= 0")


def test_numbers_of_any_kind_clip() -> None:
    for options in (
        {"max_grad_norm": Fraction(1, 10)},
        {"clipnorm": Fraction(1, 10)},
        {"global_clipnorm": Fraction(1, 10)},
        {"clipvalue": Fraction(1, 10)},
    ):
        exact = {name: float(value) for name, value in options.items()}
        pair = [fused_optim.AdamWeightDecay(parameters(), **o) for o in (options, exact)]
        for optimizer in pair:
            train(optimizer, [1, 2])
        assert_identical(*(snapshot(optimizer)[0] for optimizer in pair))
    with pytest.raises(ValueError, match="learning rate: 1000.* too large for a float"):
        fused_optim.AdamW(parameters(), lr=10**400)


@STEPS
@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "create_optimizer"])
def test_what_fails_on_the_way_to_the_kernels_counts_no_step(name: str, steps: int) -> None:
    """As a collective does when a peer is gone; a retry then makes the step that was due."""
    broken, whole = (row(name).build(parameters()) for _ in range(2))
    for optimizer in (broken, whole):
        train(optimizer, range(steps))
    set_gradients(params_of(broken), 7)
    if not steps:
        broken.init_state()
    with mock.patch.object(type(broken), "_clip_launches", side_effect=RuntimeError("peer gone")):
        assert_raises_and_changes_nothing(broken, "peer gone", RuntimeError)
    assert broken.param_groups[0]["lr"] == whole.param_groups[0]["lr"]
    for optimizer in (broken, whole):
        train(optimizer, [7, 8])
    if name != "Adafactor":  # whose statistics op has looked at the gradients, and no more
        assert_identical(snapshot(broken), snapshot(whole))


def test_a_schedule_that_raises_at_the_first_step_leaves_no_state() -> None:
    asked: list[int] = []

    def rate(step: int) -> float:
        asked.append(step)
        return 0.1 / (len(asked) == 1)  # the constructor asks first

    optimizer = fused_optim.AdamWeightDecay(parameters(), rate)
    set_gradients(params_of(optimizer), 1)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert not optimizer.state


def test_one_bad_remainder_leaves_the_others_as_they_were() -> None:
    optimizer = fused_optim.AdamW(parameters(torch.bfloat16, shapes=((4,), (5,))))
    train(optimizer, [1, 2])
    first, second = params_of(optimizer)
    optimizer.state[first].pop("remainder")
    optimizer.state[second]["remainder"] = torch.full((5,), 0.5)
    set_gradients([first, second], 3)
    assert_raises_and_changes_nothing(optimizer, "'remainder' is torch.float32 and no int16")
    assert_raises_and_changes_nothing(
        optimizer, "'remainder' is torch.float32 and no int16", call=optimizer.init_state
    )


# --- groups ----------------------------------------------------------------------------------


@every_optimizer
@STEPS
def test_a_parameter_that_was_added_a_second_time_is_refused(row, steps: int) -> None:
    optimizer = row.build(parameters(shapes=((4,), (5,))))
    train(optimizer, range(steps))
    group = optimizer.param_groups[0]
    group["params"].append(group["params"][0])
    if "param_names" in group:
        group["param_names"].append("again")
    set_gradients(params_of(optimizer), 7)
    assert_raises_and_changes_nothing(optimizer, "parameter 2.* of group 0 is listed twice")


def test_a_parameter_without_a_name_joins_named_ones() -> None:
    optimizer = torch_compat.AdamW([("a", parameters(shapes=((3,),))[0])])
    train(optimizer, [1, 2])
    optimizer.param_groups[0]["params"].append(parameters(shapes=((4,),))[0])
    train(optimizer, [3, 4])
    assert [optimizer.state[p]["step"] for p in params_of(optimizer)] == [4, 2]


def test_weight_decay_by_name_wants_a_name_for_each_and_follows_new_ones() -> None:
    named = list(zip(("w", "bias"), parameters(shapes=((3,), (4,))), strict=True))
    optimizer = fused_optim.AdamWeightDecay(
        named, 0.1, weight_decay_rate=0.5, exclude_from_weight_decay=["bias"]
    )
    train(optimizer, [1, 2, 3])
    (group,) = optimizer.param_groups
    removed = group["params"].pop(0)
    set_gradients(params_of(optimizer), 4)
    assert_raises_and_changes_nothing(optimizer, "2 names for 1 parameters.*both lists together")
    state = optimizer.state.pop(removed)
    with pytest.raises(ValueError, match="has 2 param_names for 1 parameters"):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.state[removed] = state
    group["params"].insert(0, removed)
    train(optimizer, [4, 5])
    group["param_names"] = ["bias", "w"]
    for p in params_of(optimizer):
        p.grad = torch.zeros_like(p)
        optimizer.state[p]["exp_avg"].zero_()
    before = [p.detach().clone() for p in params_of(optimizer)]
    optimizer.step()
    assert torch.equal(params_of(optimizer)[0], before[0])
    torch.testing.assert_close(params_of(optimizer)[1], 0.95 * before[1])


def test_parameters_are_free_once_they_are_out_of_groups_and_state() -> None:
    optimizer = fused_optim.AdamW(parameters())
    train(optimizer, [1, 2, 3])
    watched = [weakref.ref(p) for p in params_of(optimizer)]
    optimizer.param_groups.clear()
    optimizer.state.clear()
    gc.collect()
    assert not any(ref() is not None for ref in watched)


# --- state -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_state_may_be_any_dict(kind: type) -> None:
    optimizer = fused_optim.AdamW(parameters())
    train(optimizer, [1])
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.state = kind()
    optimizer.load_state_dict(saved)
    train(optimizer, [2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@every_optimizer
def test_state_made_in_inference_mode_trains_outside_of_it(row, dtype: torch.dtype) -> None:
    pair = [row.build(parameters(dtype)) for _ in range(2)]
    with torch.inference_mode():
        pair[0].init_state()
    for optimizer in pair:
        train(optimizer, [1, 2, 3])
    assert_identical(snapshot(pair[0])[:2], snapshot(pair[1])[:2])


def test_capturable_state_is_checked_without_reading_its_counts() -> None:
    optimizer = fused_optim.AdamW(parameters(shapes=((3,),)), capturable=True)
    train(optimizer, [1, 2])
    (p,) = params_of(optimizer)
    set_gradients([p], 3)
    kept = optimizer.state[p].pop("exp_avg_sq")
    assert_raises_and_changes_nothing(optimizer, "has no 'exp_avg_sq', but 'step', 'exp_avg'")
    optimizer.state[p]["exp_avg_sq"] = kept
    optimizer.state[p]["step"] = torch.tensor([1, 2])
    assert_raises_and_changes_nothing(optimizer, r"'step' has shape \(2,\); it should be one")


def test_reports_and_exports_check_what_they_read() -> None:
    model = torch.nn.Linear(3, 2).bfloat16()
    optimizer = fused_optim.AdamW(model.parameters(), low_precision="kahan")
    train(optimizer, [1])
    optimizer.state[model.weight]["compensation"] = torch.zeros(7)
    with pytest.raises(ValueError, match="fp32_state_dict: parameter 0.*'compensation' has shape"):
        optimizer.fp32_state_dict(model)
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match="Invalid learning rate: -1.0"):
        optimizer.check_numerics()


def test_weights_load_into_a_parameter_that_was_frozen_before_it_had_a_remainder() -> None:
    model = torch.nn.Linear(3, 2).bfloat16()
    theirs = torch.optim.AdamW(model.parameters())
    train(theirs, [1])
    optimizer = fused_optim.AdamW(model.parameters())
    optimizer.load_state_dict(theirs.state_dict())
    model.weight.requires_grad_(False)
    weights = {name: torch.full(p.shape, 0.3) for name, p in model.named_parameters()}
    optimizer.load_fp32_state_dict(model, weights)
    assert torch.equal(model.weight, torch.full((2, 3), 0.3).bfloat16())
    assert torch.equal(optimizer.fp32_state_dict(model)["bias"], torch.full((2,), 0.3))


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda s: s["param_groups"][0].update(param_names=5), "'param_names' of group 0 is no"),
        (lambda s: s["param_groups"][0].update(param_names=[None] * 4), "is no list of names"),
        (lambda s: s["param_groups"][0].update(params=[[0], 1, 2, 3]), "can't be looked up"),
        (lambda s: s["param_groups"][0].update(params=[0, 0, 2, 3]), "an id occurs twice"),
        (lambda s: s["state"][0].update(step=10**400), "it should be a whole number"),
        (
            lambda s: s["state"][0]["exp_avg"].untyped_storage().resize_(0),
            "'exp_avg' needs 120 bytes, but its memory has 0",
        ),
    ],
)
def test_dicts_of_odd_things_are_refused_in_words(change: Callable, message: str) -> None:
    optimizer = fused_optim.AdamW(parameters())
    train(optimizer, [1, 2])
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved)
    assert_raises_and_changes_nothing(
        optimizer, message, call=lambda: optimizer.load_state_dict(saved)
    )


def test_flags_may_be_numbers_and_main_grad_has_to_be_a_tensor() -> None:
    optimizer = torch_compat.AdamW(parameters(), amsgrad=0, maximize=0)
    train(optimizer, [1])
    params_of(optimizer)[0].main_grad = "x"
    assert_raises_and_changes_nothing(optimizer, "main_grad of parameter 0.* is 'x'", RuntimeError)
