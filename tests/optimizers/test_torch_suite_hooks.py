"""torch's own optimizer tests, over our classes: hooks, copies, printing, what state there is."""

import copy
import pickle

import pytest
import torch
from optimizer_table import assert_identical, set_gradients, snapshot
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch_suite import Regression, over_inputs


def parameter():
    return torch.nn.Parameter(torch.randn(2, 3))


@over_inputs()
def test_optimizer_can_be_printed(case):
    optimizer = case.build([parameter(), parameter()])
    text = repr(optimizer)
    assert text.startswith(f"{case.cls.__name__} (\nParameter Group 0\n")
    assert all(f"{key}: " in text for key in optimizer.defaults)


@over_inputs()
def test_non_empty_state(case):
    model = Regression()
    optimizer = case.build(model.params)
    assert not optimizer.state
    model.train(optimizer, 1)
    assert len(optimizer.state) == 2
    assert all(len(state) > 1 for state in optimizer.state.values())


@over_inputs()
def test_zero_tensors(case):
    """Parameters without elements are stepped and keep state like any other."""
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((0,), (3, 0), (0, 4, 2))]
    optimizer = case.build(params)
    for step in range(2):
        set_gradients(params, step)
        optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in params] == [2, 2, 2]


# --- copies ---------------------------------------------------------------------------------------


@over_inputs()
def test_deepcopy_copies_all_public_attrs(case):
    """And a copy made through pickle has no others either; both go on as the original does."""
    model = Regression()
    optimizer = case.build(model.params)
    model.train(optimizer, 3)
    for same in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert public_attributes(same) == public_attributes(optimizer)
        twin = copy.deepcopy(optimizer)
        for each in (twin, same):
            set_gradients(each.param_groups[0]["params"], 4)
            each.step()
        assert_identical(snapshot(same), snapshot(twin))


def public_attributes(optimizer):
    return {name for name in vars(optimizer) if not name.startswith("_")}


# --- hooks of step --------------------------------------------------------------------------------


@over_inputs()
def test_step_pre_hook(case):
    optimizer = case.build([parameter()])
    assert_calls_of_hook(optimizer, optimizer.register_step_pre_hook)


@over_inputs()
def test_step_post_hook(case):
    optimizer = case.build([parameter()])
    assert_calls_of_hook(optimizer, optimizer.register_step_post_hook)


def assert_calls_of_hook(optimizer, register):
    calls = []
    handle = register(lambda *args: calls.append(args))
    optimizer.step()
    optimizer.step(None)
    assert calls == [(optimizer, (optimizer,), {}), (optimizer, (optimizer, None), {})]
    handle.remove()
    optimizer.step()
    assert len(calls) == 2


@over_inputs()
def test_step_all_hooks(case):
    """Global hooks surround an optimizer's own, of this optimizer and of any other."""
    p, calls = parameter(), []
    optimizers = case.build([p]), torch.optim.SGD([p])
    handles = [
        register_optimizer_step_pre_hook(lambda *args: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *args: calls.append("global post")),
    ]
    for each in optimizers:
        handles.append(each.register_step_pre_hook(lambda *args: calls.append("pre")))
        handles.append(each.register_step_post_hook(lambda *args: calls.append("post")))
    try:
        for each in (*optimizers, optimizers[0]):
            each.step()
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["global pre", "pre", "post", "global post"] * 3
    optimizers[0].step()
    assert len(calls) == 12


# --- hooks of state dicts -------------------------------------------------------------------------


def mark_state(optimizer):
    optimizer.state["test"] = 1


def take_mark(optimizer, state_dict):
    state_dict["marked"] = state_dict["state"].pop("test", None) is not None
    return state_dict


@over_inputs()
def test_state_dict_pre_hook(case):
    optimizer = case.build([parameter()])
    optimizer.register_state_dict_pre_hook(mark_state)
    assert optimizer.state_dict()["state"] == {"test": 1}


@over_inputs()
def test_state_dict_post_hook(case):
    optimizer = case.build([parameter()])
    optimizer.register_state_dict_post_hook(take_mark)
    assert optimizer.state_dict()["marked"] is False


@over_inputs()
def test_state_dict_pre_post_hook(case):
    model = Regression()
    optimizer = case.build(model.params)
    model.train(optimizer, 1)
    optimizer.register_state_dict_pre_hook(mark_state)
    optimizer.register_state_dict_post_hook(take_mark)
    state_dict = optimizer.state_dict()
    assert state_dict["marked"] and list(state_dict["state"]) == [0, 1]


def set_lr_in_place(optimizer, state_dict):
    state_dict["param_groups"][0]["lr"] = 0.002


def set_lr_in_a_copy(optimizer, state_dict):
    state_dict = copy.deepcopy(state_dict)
    state_dict["param_groups"][0]["lr"] = 0.003
    return state_dict


def note_lr(optimizer):
    optimizer.state["lr was set"] = lr_is(optimizer, 0.003)


def lr_is(optimizer, value):
    lr = optimizer.param_groups[0]["lr"]
    return lr is not None and float(lr) == pytest.approx(value)


@over_inputs()
def test_load_state_dict_pre_hook_and_prepend(case):
    optimizer = case.build([parameter()])
    state_dict = optimizer.state_dict()
    optimizer.register_load_state_dict_pre_hook(set_lr_in_place)
    optimizer.load_state_dict(copy.deepcopy(state_dict))
    assert lr_is(optimizer, 0.002)
    optimizer.register_load_state_dict_pre_hook(set_lr_in_a_copy, prepend=True)
    optimizer.load_state_dict(state_dict)
    assert lr_is(optimizer, 0.002)  # the earlier hook comes last now


@over_inputs()
def test_load_state_dict_post_hook(case):
    optimizer = case.build([parameter()])
    optimizer.register_load_state_dict_post_hook(note_lr)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state["lr was set"] is False


@over_inputs()
def test_load_state_dict_pre_post_hook(case):
    """What a hook leaves in the state under a name of its own is in no step's way."""
    model = Regression()
    optimizer = case.build(model.params)
    model.train(optimizer, 1)
    optimizer.register_load_state_dict_pre_hook(set_lr_in_a_copy)
    handle = optimizer.register_load_state_dict_post_hook(note_lr)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state["lr was set"] is True
    handle.remove()
    model.train(optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state["lr was set"] is True
    assert [int(optimizer.state[p]["step"]) for p in model.params] == [2, 2]
