"""torch's own optimizer tests, over our classes: state dicts, old and new, and their names."""

import copy
import itertools

import pytest
import torch
from optimizer_table import assert_identical, snapshot, through_disk
from torch_suite import (
    ADAMS,
    CLASSES,
    TORCH_CLASSES,
    Regression,
    network,
    over_inputs,
    torch_info,
)

pytestmark = pytest.mark.long


def named(params, names):
    return [(f"name{i}", p) for i, p in enumerate(params)] if names else params


def without_names(state_dict):
    state_dict = copy.deepcopy(state_dict)
    for group in state_dict["param_groups"]:
        group.pop("param_names", None)
    return state_dict


def twin_of(model):
    """Return a model with the same values."""
    twin = Regression()
    twin.input = model.input
    for p, q in zip(twin.params, model.params, strict=True):
        p.data.copy_(q.data)
    return twin


def goes_on(optimizer, model):
    """Assert that a step moves every parameter."""
    before = [p.detach().clone() for p in model.params]
    model.train(optimizer, 1)
    assert all(not torch.equal(p, q) for p, q in zip(model.params, before, strict=True))


@over_inputs()
def test_state_dict_deterministic(case):
    """Loaded into a twin, named or not, it says the same, and both go on alike."""
    for names, twins_names in itertools.product((False, True), repeat=2):
        model = Regression()
        optimizer = case.build(named(model.params, names))
        model.train(optimizer, 3)
        twin = twin_of(model)
        other = case.build(named(twin.params, twins_names))
        saved = optimizer.state_dict()
        given = copy.deepcopy(saved)
        other.load_state_dict(given)
        assert_identical(given, saved)  # not what loading is to write to
        for _ in range(2):
            model.train(optimizer, 1)
            twin.train(other, 1)
            assert_identical(snapshot(other)[:2], snapshot(optimizer)[:2])
        assert_identical(without_names(other.state_dict()), without_names(optimizer.state_dict()))
        other.param_groups.extend(other.param_groups)
        last, repeated = (without_names(o.state_dict())["param_groups"] for o in (optimizer, other))
        assert_identical(repeated[-1], last[-1])


@over_inputs()
def test_can_load_from_to_named_state_dict(case):
    """Names stay if either side has them."""
    for names, twins_names in itertools.product((False, True), repeat=2):
        model = Regression()
        optimizer = case.build(named(model.params, names))
        model.train(optimizer, 2)
        other = case.build(named(model.params, twins_names))
        other.load_state_dict(optimizer.state_dict())
        goes_on(other, model)
        kept = other.state_dict()["param_groups"][0].get("param_names")
        assert kept == (["name0", "name1"] if names or twins_names else None)


@over_inputs()
def test_can_load_older_state_dict(case):
    """A dict from before an option came to be loads, and the option stays as it is."""
    flags = torch_info(case.name).not_og_supported_flags
    newer = {*flags, "low_precision", "state_dtype", "decoupled_weight_decay", "iterations"}
    model = Regression()
    optimizer = case.build(model.params)
    model.train(optimizer, 3)
    older = copy.deepcopy(optimizer.state_dict())
    for group in older["param_groups"]:
        for flag in newer & group.keys():
            del group[flag]
    expected = snapshot(optimizer)
    optimizer.load_state_dict(older)
    assert_identical(snapshot(optimizer), expected)
    goes_on(optimizer, model)


@over_inputs()
def test_save_load_equality_with_weights_only(case):
    for names in (False, True):
        model = Regression()
        optimizer = case.build(named(model.params, names))
        model.train(optimizer, 3)
        assert_identical(through_disk(optimizer.state_dict()), optimizer.state_dict())


@over_inputs()
def test_load_nontensor_step(case):
    """A step count may be an int, a float or a tensor of either, and counts on."""
    for kind in (int, float, torch.tensor, lambda step: torch.tensor([float(step)])):
        model = Regression()
        optimizer = case.build(model.params)
        model.train(optimizer, 3)
        expected = snapshot(optimizer)
        state_dict = copy.deepcopy(optimizer.state_dict())
        for state in state_dict["state"].values():
            state["step"] = kind(int(state["step"]))
        optimizer.load_state_dict(state_dict)
        assert_identical(snapshot(optimizer), expected)
        goes_on(optimizer, model)
        assert [int(state["step"]) for state in optimizer.state.values()] == [4, 4]


def can_be_capturable(case):
    return not (callable(case.kwargs.get("learning_rate")) or case.kwargs.get("decay"))


@over_inputs(where=can_be_capturable)
def test_cpu_load_state_dict(case):
    """State that says it is fused or capturable, but has its step counts elsewhere, loads."""
    for impl in ("fused", "capturable"):
        model = Regression()
        optimizer = case.build(model.params, capturable=False)
        model.train(optimizer, 1)
        saved = copy.deepcopy(optimizer.state_dict())
        for group in saved["param_groups"]:
            group[impl] = True
        twin = twin_of(model)
        other = case.build(twin.params, capturable=True)
        other.load_state_dict(saved)
        assert all(torch.is_tensor(state["step"]) for state in other.state.values())
        model.train(optimizer, 2)
        twin.train(other, 2)
        torch.testing.assert_close(twin.params, model.params)


@pytest.mark.gpu
@over_inputs()
def test_state_dict_with_cuda_params(case):
    """State saved on a CPU goes on on a GPU."""
    model = Regression()
    optimizer = case.build(model.params)
    model.train(optimizer, 3)
    twin = twin_of(model)
    twin.weight, twin.bias = (torch.nn.Parameter(p.detach().cuda()) for p in twin.params)
    twin.input = twin.input.cuda()
    other = case.build(twin.params)
    saved = optimizer.state_dict()
    given = copy.deepcopy(saved)
    other.load_state_dict(given)
    assert_identical(given, saved)
    for state in other.state.values():
        assert all(t.is_cuda for k, t in state.items() if torch.is_tensor(t) and k != "step")
    for _ in range(5):
        model.train(optimizer, 1)
        twin.train(other, 1)
        torch.testing.assert_close([p.cpu() for p in twin.params], [*model.params])


# --- torch_compat and torch -----------------------------------------------------------------------


@over_inputs(tuple(TORCH_CLASSES))
def test_state_dict_has_torchs_layout(case):
    """Keys, dtypes and shapes are torch's, and so each loads the other's and goes on."""
    for dtype in (torch.float64, torch.float32):
        (model, params, values), (torchs_model, torchs_params, _) = network(dtype), network(dtype)
        ours, theirs = case.build(params), case.build_torchs(torchs_params)
        for each, optimizer in ((model, ours), (torchs_model, theirs)):
            each(values).sum().backward()
            optimizer.step()
        mine, torchs = ours.state_dict(), theirs.state_dict()
        assert mine["state"].keys() == torchs["state"].keys()
        for number, state in torchs["state"].items():
            assert mine["state"][number].keys() == state.keys()
            torch.testing.assert_close(mine["state"][number], state)
        (my_group,), (torchs_group,) = mine["param_groups"], torchs["param_groups"]
        assert my_group.keys() == torchs_group.keys()
        ours.load_state_dict(torchs)
        theirs.load_state_dict(mine)
        for flag in {"capturable", "foreach"} & my_group.keys():
            theirs.param_groups[0][flag] = False  # torch takes some of it on a GPU only
        for optimizer in (ours, theirs):
            optimizer.step()
        torch.testing.assert_close(params, torchs_params)


def test_adamw_serialization():
    """Adam takes over how AdamW decays; AdamW stays AdamW."""
    adamw, adam = (CLASSES[name]([torch.zeros(1)]) for name in ADAMS)
    of_adamw, of_adam = adamw.state_dict(), adam.state_dict()
    assert of_adam["param_groups"][0]["decoupled_weight_decay"] is False
    older = copy.deepcopy(of_adamw)
    assert older["param_groups"][0].pop("decoupled_weight_decay") is True
    adam.load_state_dict(of_adamw)
    assert adam.param_groups[0]["decoupled_weight_decay"] is True
    for state_dict in (of_adam, older):
        adamw.load_state_dict(state_dict)
        assert adamw.param_groups[0]["decoupled_weight_decay"] is True
