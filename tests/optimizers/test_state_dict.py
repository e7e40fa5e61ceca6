"""Saving, loading, resuming: to the bit, whatever the dtypes, modes and order of loading."""

import copy

import numpy as np
import pytest
import torch
from optimizer_table import (
    MODES,
    ROWS,
    assert_identical,
    every_optimizer,
    parameters,
    params_of,
    row,
    snapshot,
    through_disk,
    train,
)

STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, None)
PRECISIONS = [(dtype, mode) for dtype, modes in MODES.items() for mode in modes]


def name_of(value):
    return str(value).removeprefix("torch.")


def weights(optimizer):
    return [p.detach().clone() for p in params_of(optimizer)]


def set_weights(optimizer, saved):
    with torch.no_grad():
        for p, value in zip(params_of(optimizer), saved, strict=True):
            p.copy_(value)


@every_optimizer
@pytest.mark.parametrize("dtype,mode", PRECISIONS, ids=name_of)
def test_a_resumed_run_equals_an_uninterrupted_one(row, dtype, mode):
    moments = "beta1" in row.kwargs or "Adafactor" not in row.name
    for state_dtype in STATE_DTYPES if moments else STATE_DTYPES[:1]:
        options = {"low_precision": mode, "state_dtype": state_dtype, "seed": 3}
        whole = row.build(parameters(dtype), **options)
        train(whole, [1, 2, 3], skip=[1])
        train(whole, [4])
        saved = through_disk([weights(whole), whole.state_dict()])
        at_save = snapshot(whole)
        train(whole, [5, 6])
        for model_first in (True, False):
            resumed = row.build(parameters(dtype, seed=9), **options)
            if model_first:
                set_weights(resumed, saved[0])
            resumed.load_state_dict(copy.deepcopy(saved[1]))
            if not model_first:
                set_weights(resumed, saved[0])
            assert_identical(snapshot(resumed), at_save)
            train(resumed, [5, 6])
            assert_identical(snapshot(resumed), snapshot(whole))


@every_optimizer
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_loading_ones_own_state_changes_nothing(row, dtype, steps):
    optimizer = row.build(parameters(dtype), maximize=True)
    train(optimizer, range(1, steps + 1))
    before = snapshot(optimizer)
    state_dict = optimizer.state_dict()
    copied = copy.deepcopy(state_dict)
    optimizer.load_state_dict(state_dict)
    assert_identical(snapshot(optimizer), before)
    assert_identical(state_dict, copied)
    assert_identical(optimizer.state_dict(), copied)
    train(optimizer, [7])


@every_optimizer
def test_a_state_dict_holds_nothing_but_tensors_and_plain_values(row):
    optimizer = row.build(parameters(torch.bfloat16))
    train(optimizer, [1])
    state_dict = optimizer.state_dict()
    for state in state_dict["state"].values():
        assert {type(v) for v in state.values()} <= {torch.Tensor, int}
    plain = (int, float, bool, str, type(None))
    for group in state_dict["param_groups"]:
        for key, value in group.items():
            values = value if isinstance(value, (list, tuple)) else [value]
            assert all(type(v) in plain for v in values), key
    assert isinstance(params_of(optimizer)[0], torch.Tensor)


@every_optimizer
def test_numpy_numbers_are_saved_as_pythons(row):
    """Schedules and configurations bring them along, and `weights_only` refuses them."""
    optimizer = row.build(parameters())
    for group in optimizer.param_groups:
        for key, value in group.items():
            if isinstance(value, float):
                group[key] = np.float64(value)
            elif isinstance(value, tuple):
                group[key] = tuple(v and np.float32(v) for v in value)
        group["more"] = [np.int64(3), np.float64(0.5)]
    train(optimizer, [1])
    saved = through_disk(optimizer.state_dict())  # which loads weights only
    for group in saved["param_groups"]:
        assert group["more"][:2] == [3, 0.5]
        assert [type(v) for v in group["more"][:2]] == [int, float]
        betas = group.get("betas", (0.0,))
        assert {type(v) for v in (group["lr"], *betas)} <= {float, type(None)}
    assert not isinstance(optimizer.param_groups[0]["more"][0], int)
    optimizer.load_state_dict(saved)


@every_optimizer
def test_hyperparameters_are_the_dicts_and_storage_is_the_constructors(row):
    saved = row.build(parameters(torch.bfloat16), low_precision="master", maximize=True)
    train(saved, [1, 2])
    for group in saved.param_groups:
        group["lr"], group["weight_decay"] = 0.5, 0.25
    options = {"low_precision": "kahan", "state_dtype": torch.bfloat16, "seed": 5}
    loaded = row.build(parameters(torch.bfloat16), **options)
    loaded.load_state_dict(saved.state_dict())
    group = loaded.settings(*loaded.param_groups)
    assert (group["lr"], group["weight_decay"], group["maximize"]) == (0.5, 0.25, True)
    assert (group["low_precision"], group["state_dtype"]) == ("kahan", torch.bfloat16)
    assert not group["capturable"]
    assert (loaded.seed, loaded.backend) == (5, "auto")
    train(loaded, [3])
    for p in params_of(loaded):
        state = loaded.state[p]
        assert state["step"] == 3
        assert "compensation" in state and "master" not in state
        assert state.get("exp_avg", torch.empty(0)).dtype in (torch.bfloat16, torch.float32)
        if "exp_avg" in state:
            assert state["exp_avg"].dtype is torch.bfloat16
        for key in ("exp_avg_sq_row", "row_var", "variance"):
            assert state.get(key, torch.empty(0)).dtype is torch.float32


def test_saved_dtypes_survive_where_torch_casts_them_to_the_parameters():
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = row("AdamW").build([p])
    train(optimizer, [1])
    value = optimizer.state[p]["exp_avg_sq"].clone()
    assert not torch.equal(value, value.bfloat16().float())
    optimizer.load_state_dict(through_disk(optimizer.state_dict()))
    assert_identical(optimizer.state[p]["exp_avg_sq"], value)


@every_optimizer
def test_missing_group_keys_come_from_the_optimizer(row):
    old, new = row.build(parameters()), row.build(parameters(), maximize=True)
    train(old, [1])
    state_dict = old.state_dict()
    (group,) = state_dict["param_groups"]
    expected = {**new.param_groups[0], **{k: group[k] for k in ("lr", "weight_decay")}}
    if "iterations" in expected:  # which the parameters' step counts tell
        expected["iterations"] = 1
    kept = {key: group[key] for key in ("params", "lr", "weight_decay")}
    new.load_state_dict({"state": state_dict["state"], "param_groups": [kept]})
    assert new.param_groups == [expected]
    train(new, [2])


@every_optimizer
def test_an_empty_group_survives(row):
    def build():
        optimizer = row.build([{"params": parameters()}])
        optimizer.param_groups.append(
            {**optimizer.param_groups[0], "params": [], "param_names": []}
        )
        if not row.named:
            for group in optimizer.param_groups:
                group.pop("param_names", None)
        return optimizer

    first, second = build(), build()
    train(first, [1])
    saved = first.state_dict()
    for key in ("lr", "betas", "eps"):
        saved["param_groups"][1].pop(key, None)
    second.load_state_dict(saved)
    train(second, [2])
    assert second.param_groups[1]["params"] == [] and "lr" in second.param_groups[1]


def _without_a_parameter(saved):
    saved["param_groups"][0]["params"].pop()


def _with_another_group(saved):
    saved["param_groups"].append({**saved["param_groups"][0], "params": []})


def _with_state_of_another_size(saved):
    state = saved["state"][3]
    key = next(k for k, v in state.items() if isinstance(v, torch.Tensor) and v.dim() > 1)
    state[key] = torch.zeros(7, 4)


def _with_state_of_another_shape(saved):
    state = saved["state"][3]
    key = next(k for k, v in state.items() if isinstance(v, torch.Tensor) and v.dim() > 1)
    state[key] = state[key].movedim(0, 1).contiguous()


@every_optimizer
@pytest.mark.parametrize(
    "spoil,message",
    [
        (_without_a_parameter, r"size of optimizer's group.*\[3\], not \[4\]"),
        (_with_another_group, "different number of parameter groups: 2, not 1"),
        (_with_state_of_another_size, r"parameter 3.* of group 0: .*has shape \(7, 4\), but a .*"),
        (_with_state_of_another_shape, r"has shape .*, but a parameter of shape \(2, 3, 4\)"),
    ],
    ids=["parameters", "groups", "size", "shape"],
)
def test_a_state_of_another_model_is_refused_and_changes_nothing(row, spoil, message):
    optimizer = row.build(parameters())
    train(optimizer, [1, 2])
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group["lr"] = 0.123
    spoil(saved)
    before, groups = snapshot(optimizer), list(optimizer.param_groups)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert_identical(snapshot(optimizer), before)
    assert all(a is b for a, b in zip(optimizer.param_groups, groups, strict=True))
    train(optimizer, [3])


@every_optimizer
def test_hooks_see_and_replace_state_dicts(row):
    optimizer, other = row.build(parameters()), row.build(parameters())
    train(optimizer, [1])
    calls = []
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("pre save"))
    optimizer.register_state_dict_post_hook(lambda o, s: {**s, "extra": calls.append("post save")})
    other.register_load_state_dict_pre_hook(lambda o, s: calls.append("pre load"))
    other.register_load_state_dict_pre_hook(lambda o, s: s["inner"])
    other.register_load_state_dict_post_hook(lambda o: calls.append("post load"))
    saved = optimizer.state_dict()
    assert saved.keys() == {"state", "param_groups", "extra"}
    outer = {"inner": saved}
    other.load_state_dict(state_dict=outer)
    assert outer.keys() == {"inner"}
    assert calls == ["pre save", "post save", "pre load", "post load"]
    assert_identical(snapshot(other)[1:], snapshot(optimizer)[1:])
    other.register_state_dict_post_hook(lambda o, s: {"flat": len(s["state"])})
    assert other.state_dict() == {"flat": 4}


def test_a_callable_learning_rate_stays_the_optimizers_and_goes_on_where_it_was():
    rows = [r for r in ROWS if callable(r.kwargs.get("learning_rate"))]
    assert rows
    for each in rows:
        optimizer = each.build(parameters())
        train(optimizer, [1, 2, 3])
        saved = through_disk(optimizer.state_dict())
        new_schedule = each.build(parameters(), learning_rate=lambda step: 0.5 / (1 + step))
        new_schedule.load_state_dict(saved)
        assert new_schedule.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        train(new_schedule, [4])
        assert new_schedule.param_groups[0]["lr"] == 0.5 / 4
