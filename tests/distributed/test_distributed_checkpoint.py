"""torch.distributed.checkpoint: its way to create state, its state dicts, its files."""

import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from optimizer_table import (
    MODES,
    ROWS,
    assert_identical,
    every_optimizer,
    params_of,
    snapshot,
    through_disk,
    train,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    _init_optim_state,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

PRECISIONS = [(dtype, mode) for dtype, modes in MODES.items() for mode in modes]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def model_of(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    layers = [torch.nn.Embedding(5, 4), torch.nn.Linear(4, 6), torch.nn.LayerNorm(6)]
    model = torch.nn.Sequential(*layers).to(dtype)
    with torch.no_grad():
        model[0].weight.view(-1)[:4] = torch.tensor([0.0, -0.0, 1e-38, -3e4])
    return model


def lists(value):
    """Nested values with lists for tuples, as full state dicts have them."""
    if isinstance(value, dict):
        return {key: lists(v) for key, v in value.items()}
    return [lists(v) for v in value] if isinstance(value, (list, tuple)) else value


@every_optimizer
@pytest.mark.parametrize("dtype,mode", PRECISIONS, ids=lambda x: str(x).removeprefix("torch."))
def test_creating_state_by_a_step_moves_no_weight(row, dtype, mode):
    """With zero gradients and lr 0; where transformers' Adafactor applies its weight decay."""
    options = {"low_precision": mode}
    optimizer = row.build(model_of(dtype), **options)
    lrs = [group["lr"] for group in optimizer.param_groups]
    before = snapshot(optimizer)[0]
    _init_optim_state(optimizer)
    assert_identical(snapshot(optimizer)[0], before)
    assert [group["lr"] for group in optimizer.param_groups] == lrs
    made = [
        {k: (v.dtype, v.shape) for k, v in optimizer.state[p].items() if k != "step"}
        for p in params_of(optimizer)
    ]
    plain = row.build(model_of(dtype), **options)
    plain.init_state()
    for p, found in zip(params_of(plain), made, strict=True):
        state = plain.state[p].items()
        assert {k: (v.dtype, v.shape) for k, v in state if k != "step"} == found
    train(optimizer, [1])


@every_optimizer
def test_creating_state_with_a_tensor_for_a_learning_rate_moves_no_weight(row):
    optimizer = row.build(model_of())
    for group in optimizer.param_groups:
        if group["lr"] is not None:
            group["lr"] = torch.tensor(group["lr"])
    before = snapshot(optimizer)[0]
    _init_optim_state(optimizer)
    assert_identical(snapshot(optimizer)[0], before)


@every_optimizer
@DTYPES
@pytest.mark.parametrize("kind", ["nested", "flatten_optimizer_state_dict", "full_state_dict"])
def test_state_goes_there_and_back(row, dtype, kind):
    options = StateDictOptions(**({} if kind == "nested" else {kind: True}))
    flat = kind.startswith("flat")
    model = model_of(dtype)
    optimizer = row.build(model)
    train(optimizer, [1, 2, 3])
    saved = through_disk(get_optimizer_state_dict(model, optimizer, options=options))
    weights = through_disk(model.state_dict())
    if flat:
        assert "state.1.weight.step" in saved and "param_groups.1.bias.lr" in saved
    else:
        assert saved["state"].keys() == dict(model.named_parameters()).keys()

    other_model = model_of(dtype, seed=1)
    other = row.build(other_model)
    set_optimizer_state_dict(other_model, other, saved, options=options)
    other_model.load_state_dict(weights)
    for steps in ([4, 5], []):
        assert_identical(snapshot(other)[:2], snapshot(optimizer)[:2])
        assert lists(snapshot(other)[2]) == lists(snapshot(optimizer)[2])
        train(optimizer, steps)
        train(other, steps)


@every_optimizer
def test_state_survives_its_files(row, tmp_path):
    model, other_model = model_of(torch.bfloat16), model_of(torch.bfloat16, seed=1)
    optimizer, other = row.build(model), row.build(other_model)
    train(optimizer, [1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no process group, which it remarks on
        saved = {"o": get_optimizer_state_dict(model, optimizer), "m": model.state_dict()}
        dcp.save(saved, checkpoint_id=tmp_path)
        loaded = {"o": get_optimizer_state_dict(other_model, other), "m": other_model.state_dict()}
        dcp.load(loaded, checkpoint_id=tmp_path)
        set_optimizer_state_dict(other_model, other, loaded["o"])
    other_model.load_state_dict(loaded["m"])
    assert_identical(snapshot(other), snapshot(optimizer))
    for each in (optimizer, other):
        train(each, [3])
    assert_identical(snapshot(other), snapshot(optimizer))


def test_frozen_parameters_and_several_groups():
    for row in ROWS:
        model = model_of()
        model[2].requires_grad_(False)

        def build(model, row=row):
            named = dict(model.named_parameters())
            groups = [
                [(n, p) for n, p in named.items() if ("0." in n) == first] for first in (1, 0)
            ]
            if not row.named:
                groups = [[p for _, p in group] for group in groups]
            return row.build([{"params": group} for group in groups])

        optimizer = build(model)
        saved = get_optimizer_state_dict(model, optimizer)
        assert "2.weight" not in saved["state"]
        other_model = model_of(seed=1)
        other_model[2].requires_grad_(False)
        other = build(other_model)
        set_optimizer_state_dict(other_model, other, saved)
        assert len(other.param_groups) == 2
        assert_identical(snapshot(other)[1:], snapshot(optimizer)[1:])
