"""Checkpoints that go from a peer to this package and back, and from its versions to the next."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from optimizer_table import (
    MODES,
    assert_identical,
    every_optimizer,
    parameters,
    params_of,
    snapshot,
    through_disk,
    train,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import fused_optim
from fused_optim import torch_compat

KINDS = {
    "nested": StateDictOptions(),
    "flattened": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True),
}
every_kind = pytest.mark.parametrize("options", KINDS.values(), ids=list(KINDS))


def _transformers_adafactor(params: Any, **options: Any) -> torch.optim.Optimizer:
    return pytest.importorskip("transformers.optimization").Adafactor(params, **options)


PAIRS: dict[str, tuple[Callable, Callable, dict[str, Any]]] = {
    "AdamW": (torch.optim.AdamW, torch_compat.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "AdamW-amsgrad": (torch.optim.AdamW, torch_compat.AdamW, {"lr": 1e-2, "amsgrad": True}),
    "Adam": (torch.optim.Adam, torch_compat.Adam, {"lr": 1e-2, "weight_decay": 0.1}),
    "torch-Adafactor": (torch.optim.Adafactor, torch_compat.Adafactor, {"lr": 5e-3}),
    "Adafactor": (_transformers_adafactor, fused_optim.Adafactor, {"weight_decay": 0.1}),
    "Adafactor-lr": (
        _transformers_adafactor,
        fused_optim.Adafactor,
        {"lr": 1e-2, "relative_step": False, "scale_parameter": False, "beta1": 0.9},
    ),
}


def model_of(seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.LayerNorm(6)).to(dtype)


def through_files(source: tuple, target: tuple, options: StateDictOptions, folder: Path) -> None:
    """Save one (model, optimizer) by torch.distributed.checkpoint and load it into another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no process group, which it remarks on
        saved = get_optimizer_state_dict(*source, options=options)
        dcp.save({"optimizer": saved}, checkpoint_id=folder)
        into = {"optimizer": get_optimizer_state_dict(*target, options=options)}
        dcp.load(into, checkpoint_id=folder)
    set_optimizer_state_dict(*target, into["optimizer"], options=options)
    target[0].load_state_dict(copy.deepcopy(source[0].state_dict()))


@every_kind
@pytest.mark.parametrize("back", [False, True], ids=["from the peer", "to the peer"])
@pytest.mark.parametrize("name", PAIRS)
def test_checkpoints_go_both_ways(
    name: str, back: bool, options: StateDictOptions, tmp_path: Path
) -> None:
    """The next steps are those of the same class with the same state, to the bit."""
    theirs, ours, kwargs = PAIRS[name]
    make_source, make_target = (ours, theirs) if back else (theirs, ours)
    model, other = model_of(), model_of(1)
    source = make_source(model.parameters(), **kwargs)
    train(source, [1, 2, 3])
    target = make_target(other.parameters(), **kwargs)
    through_files((model, source), (other, target), options, tmp_path)

    twin = model_of(1)
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    reference = make_target(twin.parameters(), **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.load_state_dict(copy.deepcopy(source.state_dict()))
    for optimizer in (target, reference):
        train(optimizer, [4, 5])
    assert_identical(snapshot(target)[0], snapshot(reference)[0])
    for p, q in zip(params_of(target), params_of(source), strict=True):
        assert int(target.state[p]["step"]) == int(source.state[q]["step"]) + 2


@pytest.mark.parametrize("name", ["AdamW", "AdamW-amsgrad", "Adam", "torch-Adafactor"])
def test_torch_compats_state_dict_is_torchs(name: str) -> None:
    theirs, ours, kwargs = PAIRS[name]
    dicts = []
    for make in (theirs, ours):
        optimizer = make(parameters(), **kwargs)
        train(optimizer, [1, 2, 3])
        dicts.append(optimizer.state_dict())
    torchs, compats = dicts
    assert compats["param_groups"] == torchs["param_groups"]
    for key, state in torchs["state"].items():
        mine = compats["state"][key]
        assert mine.keys() == state.keys()
        assert {k: (v.dtype, v.shape) for k, v in mine.items()} == {
            k: (v.dtype, v.shape) for k, v in state.items()
        }
        assert torch.equal(mine["step"], state["step"])


@pytest.mark.parametrize("name", ["Adafactor", "Adafactor-lr"])
def test_adafactors_state_dict_is_transformers(name: str) -> None:
    theirs, ours, kwargs = PAIRS[name]
    dicts = []
    for make in (theirs, ours):
        optimizer = make(parameters(), **kwargs)
        train(optimizer, [1, 2, 3])
        dicts.append(optimizer.state_dict())
    assert dicts[1]["param_groups"] == dicts[0]["param_groups"]
    for key, state in dicts[0]["state"].items():
        assert dicts[1]["state"][key].keys() == state.keys()


def test_fused_adamw_takes_torchs_checkpoint_by_way_of_torch_compat(tmp_path: Path) -> None:
    """Their group keys differ, and torch.distributed.checkpoint insists on each."""
    model, other = model_of(), model_of(1)
    theirs = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(theirs, [1, 2, 3])
    compat = torch_compat.AdamW(other.parameters())
    through_files((model, theirs), (other, compat), StateDictOptions(), tmp_path)
    ours = fused_optim.AdamW(other.parameters())
    ours.load_state_dict(compat.state_dict())
    reference = fused_optim.AdamW([torch.nn.Parameter(p.detach().clone()) for p in params_of(ours)])
    reference.load_state_dict(theirs.state_dict())
    for optimizer in (ours, reference):
        train(optimizer, [4])
    assert_identical(snapshot(ours)[:2], snapshot(reference)[:2])
    assert ours.param_groups[0]["lr"] == 1e-2


def as_saved_by_0_1_0(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state dict in the layout of that version: all options in the groups, int16 remainders."""
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = int(state["step"])
        if "remainder" in state:
            state["remainder"] = state["remainder"].view(torch.int16)
    for group, live in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        settings = optimizer.settings(live)
        for name in ("low_precision", "state_dtype", "maximize", "capturable"):
            group[name] = settings[name]
        group["state_dtype"] = str(settings["state_dtype"]).removeprefix("torch.")
    return saved


@every_optimizer
@pytest.mark.parametrize("maximize", [False, True])
def test_state_dicts_of_0_1_0_load(row, maximize: bool) -> None:
    for dtype, modes in MODES.items():
        for mode in modes:
            options = {"low_precision": mode, "maximize": maximize}
            optimizer = row.build(parameters(dtype), **options)
            train(optimizer, [1, 2, 3])
            saved = through_disk(as_saved_by_0_1_0(optimizer))
            params = [torch.nn.Parameter(p.detach().clone()) for p in params_of(optimizer)]
            loaded = row.build(params, low_precision=mode)
            loaded.load_state_dict(saved)
            for each in (optimizer, loaded):
                train(each, [4, 5])
            assert_identical(snapshot(loaded)[:2], snapshot(optimizer)[:2])


def _lose_the_rest(saved: dict[str, Any]) -> None:
    """As code does that casts state to its parameter's dtype before it knows what the state is."""
    for state in saved["state"].values():
        state["remainder"] = state["remainder"].float() + 0.5


def test_a_remainder_that_was_cast_is_refused() -> None:
    optimizer = fused_optim.AdamW(parameters(torch.bfloat16))
    train(optimizer, [1, 2, 3])
    saved = copy.deepcopy(optimizer.state_dict())
    _lose_the_rest(saved)
    with pytest.raises(ValueError, match="'remainder' is torch.float32 and no int16 in that form"):
        optimizer.load_state_dict(saved)


MODE_PAIRS = [
    (a, b)
    for a in ("split", "master", "kahan", "stochastic")
    for b in ("split", "master", "kahan")
    if a != b
]


@pytest.mark.parametrize("model_first", [True, False], ids=["model first", "optimizer first"])
@pytest.mark.parametrize("started", [False, True], ids=["new", "with state"])
@pytest.mark.parametrize("saved_in,loaded_in", MODE_PAIRS)
def test_a_mode_changed_between_save_and_load_keeps_what_it_can(
    saved_in: str, loaded_in: str, started: bool, model_first: bool
) -> None:
    """set_optimizer_state_dict gives what load_state_dict does, although it creates state first."""
    options = StateDictOptions(full_state_dict=True)
    model = model_of(dtype=torch.bfloat16)
    optimizer = fused_optim.AdamW(model.parameters(), lr=1e-3, low_precision=saved_in)
    train(optimizer, [1, 2, 3, 4])
    saved = through_disk(get_optimizer_state_dict(model, optimizer, options=options))
    weights = []
    for by_checkpoint in (True, False):
        other = model_of(0 if model_first else 1, torch.bfloat16)
        loaded = fused_optim.AdamW(other.parameters(), lr=1e-3, low_precision=loaded_in)
        if started:
            loaded.init_state()
        if model_first:
            other.load_state_dict(copy.deepcopy(model.state_dict()))
        if by_checkpoint:
            set_optimizer_state_dict(other, loaded, copy.deepcopy(saved), options=options)
        else:
            loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        other.load_state_dict(copy.deepcopy(model.state_dict()))
        weights.append(loaded.fp32_state_dict(other))
        train(loaded, [5])
        weights[-1] = [weights[-1], loaded.fp32_state_dict(other)]
    assert_identical([dict(w) for w in weights[0]], [dict(w) for w in weights[1]])
    if {saved_in, loaded_in} <= {"split", "master"}:
        assert_identical(dict(weights[0][0]), dict(optimizer.fp32_state_dict(model)))


def test_a_flattened_dict_of_another_mode_loads_with_a_warning() -> None:
    """There torch asks for the keys of this optimizer alone, so the rest is lost to it."""
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    model = model_of(dtype=torch.bfloat16)
    optimizer = fused_optim.AdamW(model.parameters(), low_precision="split")
    train(optimizer, [1, 2])
    saved = get_optimizer_state_dict(model, optimizer, options=options)
    other = model_of(dtype=torch.bfloat16)
    loaded = fused_optim.AdamW(other.parameters(), low_precision="master")
    with pytest.warns(UserWarning, match="has no 'master', so weights go on from their 16 bits"):
        set_optimizer_state_dict(other, loaded, saved, options=options)
    train(loaded, [3])
