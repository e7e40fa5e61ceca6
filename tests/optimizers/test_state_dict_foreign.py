"""State dicts that are not this optimizer's: translated where that is exact, else refused."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizer_table import (
    assert_identical,
    every_optimizer,
    parameters,
    params_of,
    row,
    snapshot,
    through_disk,
    train,
)

import fused_optim
from fused_optim import torch_compat

ADAMS = {
    "AdamW": fused_optim.AdamW,
    "AdamWeightDecay": fused_optim.AdamWeightDecay,
    "torch_compat.AdamW": torch_compat.AdamW,
    "torch_compat.Adam": torch_compat.Adam,
}
every_adam = pytest.mark.parametrize("make", ADAMS.values(), ids=list(ADAMS))


def trained(make: Callable = torch_compat.AdamW, dtype: torch.dtype = torch.float32, **options):
    optimizer = make(parameters(dtype), **options)
    train(optimizer, [1, 2, 3])
    return optimizer


def twin(optimizer: torch.optim.Optimizer, make: Callable, **options) -> torch.optim.Optimizer:
    return make([torch.nn.Parameter(p.detach().clone()) for p in params_of(optimizer)], **options)


def renamed(saved: dict[str, Any], names: dict[str, str], *left_out: str) -> dict[str, Any]:
    """A copy of a state dict whose states have other keys."""
    saved = copy.deepcopy(saved)
    for key, state in saved["state"].items():
        saved["state"][key] = {names.get(k, k): v for k, v in state.items() if k not in left_out}
    return saved


def assert_refused(optimizer: torch.optim.Optimizer, saved: Any, message: str) -> None:
    before, groups = snapshot(optimizer), list(optimizer.param_groups)
    copied = copy.deepcopy(saved)
    with pytest.raises(ValueError, match=f"^{type(optimizer).__name__}.load_state_dict.*{message}"):
        optimizer.load_state_dict(saved)
    assert_identical(snapshot(optimizer), before)
    assert all(a is b for a, b in zip(optimizer.param_groups, groups, strict=True))
    assert str(saved) == str(copied)


def assert_goes_on(loaded: torch.optim.Optimizer, reference: torch.optim.Optimizer) -> None:
    for optimizer in (loaded, reference):
        train(optimizer, [4, 5])
    assert_identical(snapshot(loaded)[:2], snapshot(reference)[:2])


BITSANDBYTES = {"exp_avg": "state1", "exp_avg_sq": "state2"}


@every_adam
def test_bitsandbytes_32_bit_state_is_translated_and_said_so(make: Callable) -> None:
    optimizer = trained(make)
    saved = renamed(optimizer.state_dict(), BITSANDBYTES)
    for state in saved["state"].values():
        state.update(step=3, gnorm_vec=torch.zeros(100))
    loaded = twin(optimizer, make)
    with pytest.warns(UserWarning, match="parameter 0 of group 0 and 3 more: it is bitsandbytes'"):
        loaded.load_state_dict(through_disk(saved))
    assert "gnorm_vec" not in loaded.state[params_of(loaded)[0]]
    assert_goes_on(loaded, optimizer)


def _with_codes(state: dict[str, Any]) -> None:
    state["state1"] = state["state1"].to(torch.uint8)


def _with_maps(state: dict[str, Any]) -> None:
    state.update(qmap1=torch.zeros(256), absmax1=torch.zeros(1))


@every_adam
@pytest.mark.parametrize("quantize", [_with_codes, _with_maps])
def test_bitsandbytes_8_bit_state_is_refused_with_the_way(make: Callable, quantize) -> None:
    optimizer = trained(make)
    saved = renamed(optimizer.state_dict(), BITSANDBYTES)
    quantize(saved["state"][2])
    assert_refused(optimizer, saved, "parameter 2.*8-bit state.*dequantize_blockwise")


@pytest.mark.parametrize("mode", ["split", "master"])
def test_transformer_engines_masters_are_taken_to_the_bit(mode: str) -> None:
    """Its remainders are int16 and mean what split's do; elsewhere it keeps float32."""
    optimizer = trained(fused_optim.AdamW, torch.bfloat16, low_precision=mode)
    key = {"split": "remainder", "master": "master"}[mode]
    saved = renamed(optimizer.state_dict(), {key: "master_param"}, "step")
    for state in saved["state"].values():
        if mode == "split":
            state["master_param"] = state["master_param"].view(torch.int16)
    saved["param_groups"] = [{**g, "step": 3, "bias_correction": 1} for g in saved["param_groups"]]
    loaded = twin(optimizer, fused_optim.AdamW, low_precision=mode)
    with pytest.warns(UserWarning, match="TransformerEngine's state: 'master_param' was taken"):
        loaded.load_state_dict(through_disk(saved))
    assert_goes_on(loaded, optimizer)


@pytest.mark.parametrize(
    "extra,message",
    [
        ({"error_bits": torch.zeros(6, 5)}, "flashoptim's .*error correction.*master_weight_bits"),
        ({"exp_avg::quantized": torch.zeros(3)}, "flashoptim's compressed.*compress_state_dict"),
    ],
    ids=["corrections", "compressed"],
)
def test_flashoptims_state_is_refused_where_it_is_not_plain(extra, message) -> None:
    optimizer = trained(fused_optim.AdamW)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0].update(extra)
    assert_refused(optimizer, saved, f"parameter 0.*{message}")


def test_flashoptims_plain_state_loads() -> None:
    optimizer = trained(fused_optim.AdamW)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0].update(master_bytewidth=4, quantize=False)
    for state in saved["state"].values():
        state["step"] = torch.tensor(3.0)
    loaded = twin(optimizer, fused_optim.AdamW)
    loaded.load_state_dict(saved)
    assert_goes_on(loaded, optimizer)


@every_adam
def test_nadams_moments_are_taken_and_said_so(make: Callable) -> None:
    theirs = trained(torch.optim.NAdam)
    loaded = twin(theirs, make)
    with pytest.warns(UserWarning, match="NAdam's state: moments and step counts are the same"):
        loaded.load_state_dict(theirs.state_dict())
    for p, q in zip(params_of(loaded), params_of(theirs), strict=True):
        assert loaded.state[p].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert torch.equal(loaded.state[p]["exp_avg"], theirs.state[q]["exp_avg"])


FOREIGN = {
    "SGD": lambda p: torch.optim.SGD(p, momentum=0.9),
    "RMSprop": torch.optim.RMSprop,
    "Adagrad": torch.optim.Adagrad,
    "Adamax": torch.optim.Adamax,
    "torch Adafactor": torch.optim.Adafactor,
    "Adafactor": fused_optim.Adafactor,
    "Adafactor-momentum": lambda p: fused_optim.Adafactor(p, beta1=0.9),
}


@every_adam
@pytest.mark.parametrize("source", FOREIGN)
def test_states_of_other_kinds_are_refused_by_an_adam(make: Callable, source: str) -> None:
    theirs = FOREIGN[source](parameters())
    train(theirs, [1, 2])
    assert_refused(trained(make), theirs.state_dict(), "")


@pytest.mark.parametrize("make", [fused_optim.Adafactor, torch_compat.Adafactor])
@pytest.mark.parametrize("source", ["SGD", "Adamax", "AdamW"])
def test_states_of_other_kinds_are_refused_by_adafactor(make: Callable, source: str) -> None:
    theirs = {**FOREIGN, "AdamW": torch.optim.AdamW}[source](parameters())
    train(theirs, [1, 2])
    assert_refused(trained(make), theirs.state_dict(), "")


@every_optimizer
@pytest.mark.parametrize("how", ["missing", "None"])
def test_a_state_that_lacks_a_moment_is_refused_by_name(row, how: str) -> None:
    optimizer = row.build(parameters())
    train(optimizer, [1, 2, 3])
    for key in {k for p in params_of(optimizer) for k in optimizer.state[p]} - {"step", "RMS"}:
        saved = copy.deepcopy(optimizer.state_dict())
        place = next(k for k, s in saved["state"].items() if key in s)
        if how == "missing":
            del saved["state"][place][key]
        else:
            saved["state"][place][key] = None
        assert_refused(optimizer, saved, f"parameter {place}.*has no '{key}', but ")


@every_optimizer
def test_a_state_without_steps_needs_no_moments(row) -> None:
    optimizer = row.build(parameters())
    saved = {**optimizer.state_dict(), "state": {0: {"step": 0}, 1: {}}}
    optimizer.load_state_dict(saved)
    train(optimizer, [1])


@every_optimizer
def test_what_json_makes_of_a_state_dict_loads(row) -> None:
    optimizer = row.build(parameters())
    train(optimizer, [1, 2, 3])
    numbers = copy.deepcopy(optimizer.state_dict())
    for state in numbers["state"].values():
        state.update({k: v.tolist() for k, v in state.items() if isinstance(v, torch.Tensor)})
    loaded, reference = (
        row.build([torch.nn.Parameter(p.detach().clone()) for p in params_of(optimizer)])
        for _ in range(2)
    )
    loaded.load_state_dict(json.loads(json.dumps(numbers)))
    reference.load_state_dict(optimizer.state_dict())
    assert_goes_on(loaded, reference)


@every_optimizer
def test_state_of_no_parameter_is_refused_and_other_things_are_kept(row) -> None:
    optimizer = row.build(parameters())
    train(optimizer, [1])
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"]["whole"] = {"note": 3}
    optimizer.load_state_dict(saved)
    assert optimizer.state["whole"] == {"note": 3}
    saved["state"]["layer.weight"] = saved["state"].pop(0)
    assert_refused(optimizer, saved, "state under 'layer.weight', which no parameter")


def _cut(saved: dict[str, Any]) -> dict[str, Any]:
    return {"param_groups": saved["param_groups"]}


def _whole_checkpoint(saved: dict[str, Any]) -> dict[str, Any]:
    return {"model": {}, "optimizer": saved}


def _flattened(saved: dict[str, Any]) -> dict[str, Any]:
    return {"state.0.step": 3, "param_groups.0.lr": 0.1}


def _state_list(saved: dict[str, Any]) -> dict[str, Any]:
    return {**saved, "state": list(saved["state"].values())}


def _groups_dict(saved: dict[str, Any]) -> dict[str, Any]:
    return {**saved, "param_groups": saved["param_groups"][0]}


def _group_list(saved: dict[str, Any]) -> dict[str, Any]:
    return {**saved, "param_groups": [[0, 1, 2, 3]]}


def _state_of_a_parameter_list(saved: dict[str, Any]) -> dict[str, Any]:
    return {**saved, "state": {**saved["state"], 1: [3, 0.5]}}


MALFORMED = {
    _cut: "no 'state' but 'param_groups'; pass what",
    _whole_checkpoint: "no 'state' but 'model', 'optimizer'.*is it a whole checkpoint",
    _flattened: "is flattened; .*set_optimizer_state_dict",
    _state_list: "'state' is a list; it should be a dict",
    _groups_dict: "'param_groups' is a dict; it should be a list",
    _group_list: r"group 0 is no dict with a list 'params': 0, 1, 2, 3",
    _state_of_a_parameter_list: r"parameter 1.*its state is \[3, 0.5\]; it should be a dict",
}


@pytest.mark.parametrize("make", MALFORMED, ids=lambda f: f.__name__)
@every_optimizer
def test_what_is_no_state_dict_is_refused_in_words(row, make: Callable) -> None:
    optimizer = row.build(parameters())
    train(optimizer, [1])
    assert_refused(optimizer, make(copy.deepcopy(optimizer.state_dict())), MALFORMED[make])


@pytest.mark.parametrize("given", [None, [1], "checkpoint.pt", 3])
def test_what_is_no_dict_is_refused_in_words(given) -> None:
    with pytest.raises(ValueError, match="load_state_dict takes what state_dict.. returned, not a"):
        row("AdamW").build(parameters()).load_state_dict(given)


BAD_GROUP_VALUES = [
    ("lr", float("nan")),
    ("lr", -1.0),
    ("lr", "fast"),
    ("weight_decay", float("nan")),
    ("weight_decay", None),
    ("betas", (1.5, 0.9)),
    ("betas", (1.0, 0.999)),
    ("betas", 0.9),
    ("eps", -1.0),
    ("eps", (-1e-30, 1e-3)),
    ("beta1", 1.0),
    ("beta2_decay", 0.5),
    ("clip_threshold", None),
    ("maximize", "yes"),
]


@every_optimizer
@pytest.mark.parametrize("key,value", BAD_GROUP_VALUES, ids=str)
def test_values_that_the_constructor_refuses_come_in_no_other_way(row, key, value) -> None:
    optimizer = row.build(parameters())
    if key not in optimizer.settings(optimizer.param_groups[0]):
        return
    train(optimizer, [1, 2, 3])
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0][key] = value
    assert_refused(optimizer, saved, "group 0: Invalid")
    schedule = getattr(optimizer, "learning_rate", None)
    if key == "lr" and schedule is not None:
        return  # the next step writes the schedule's
    before = snapshot(optimizer)
    kept = dict(optimizer.param_groups[0])
    optimizer.param_groups[0][key] = value
    with pytest.raises(ValueError, match=f"^{type(optimizer).__name__}, group 0: Invalid"):
        optimizer.step()
    optimizer.param_groups[0].clear()
    optimizer.param_groups[0].update(kept)
    assert_identical(snapshot(optimizer), before)
    train(optimizer, [4])


@pytest.mark.parametrize("dtype", ["bfloat16", 16])
def test_a_bad_option_in_a_group_is_refused_at_the_step(dtype) -> None:
    optimizer = trained(fused_optim.AdamW)
    optimizer.param_groups[0]["state_dtype"] = dtype
    with pytest.raises(ValueError, match="Invalid state_dtype: .* - should be torch.float32"):
        optimizer.step()


def test_a_tensor_for_a_rate_is_looked_at_in_every_step() -> None:
    optimizer = trained(torch_compat.AdamW, lr=torch.tensor(0.1))
    optimizer.param_groups[0]["lr"].fill_(float("nan"))
    with pytest.raises(ValueError, match="Invalid learning rate: nan"):
        optimizer.step()
    optimizer.param_groups[0]["betas"] = [0.9, 0.99]
    optimizer.param_groups[0]["lr"].fill_(0.1)
    optimizer.step()
    optimizer.param_groups[0]["betas"][0] = 1.5
    with pytest.raises(ValueError, match="Invalid beta parameter at index 0: 1.5"):
        optimizer.step()


@every_optimizer
@pytest.mark.parametrize("step", [-5, float("inf"), float("nan"), 2.5, "three", torch.ones(2)])
def test_a_step_count_that_is_none_is_refused(row, step) -> None:
    optimizer = row.build(parameters())
    train(optimizer, [1, 2])
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][1]["step"] = step
    assert_refused(optimizer, saved, "'step' is .*; it should be a whole number, 0 or more")


@every_optimizer
def test_a_moment_is_refused_by_kind_and_copied_where_it_shares_memory(row) -> None:
    optimizer = row.build(parameters(shapes=((4,),)))
    train(optimizer, [1, 2])
    key = next(
        k
        for k, v in optimizer.state_dict()["state"][0].items()
        if k.startswith("exp_avg") or k == "variance"
    )
    for value, message in (
        (torch.zeros(4, dtype=torch.complex64), "is torch.complex64; it should be of a float"),
        (torch.zeros(4, dtype=torch.int64), "is torch.int64; it should be of a float"),
        (torch.zeros(4).to_sparse(), "has layout torch.sparse_coo"),
        (torch.zeros(4, device="meta"), "is on the meta device"),
        ("zeros", "is 'zeros'; it should be a tensor"),
        (float("nan"), r"has shape \(\)"),
    ):
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][0][key] = value
        assert_refused(optimizer, saved, f"parameter 0.*state '{key}' {message}")
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0][key] = torch.full((1,), 0.25).expand(4)
    optimizer.load_state_dict(saved)
    train(optimizer, [3])


def test_a_float_rate_keeps_its_bits_in_a_capturable_optimizer() -> None:
    saved = trained(torch_compat.AdamW, lr=0.003).state_dict()
    loaded = torch_compat.AdamW(parameters(), capturable=True)
    loaded.load_state_dict(saved)
    lr = loaded.param_groups[0]["lr"]
    assert lr.dtype is torch.float64 and lr.item() == 0.003


def named(order: str) -> list[tuple[str, torch.nn.Parameter]]:
    shapes = {"weight": (3, 2), "bias": (3,), "gain": (3,)}
    values = {n: torch.full(s, 1.0 + i) for i, (n, s) in enumerate(shapes.items())}
    return [(name, torch.nn.Parameter(values[name].clone())) for name in order.split()]


@every_optimizer
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.module."])
def test_parameters_with_names_are_matched_by_them(row, wrapper: str) -> None:
    optimizer = row.build([(wrapper + n, p) for n, p in named("weight bias gain")])
    other = row.build(named("gain weight bias"))
    train(optimizer, [1, 2])
    other.load_state_dict(through_disk(optimizer.state_dict()))
    assert other.param_groups[0]["param_names"] == ["gain", "weight", "bias"]
    for mine, his in ((0, 2), (1, 0), (2, 1)):
        p, q = params_of(other)[mine], params_of(optimizer)[his]
        assert_identical(dict(other.state[p]), dict(optimizer.state[q]))


def test_weight_decay_by_name_follows_the_names() -> None:
    make = lambda order: fused_optim.AdamWeightDecay(  # noqa: E731
        named(order), 0.1, weight_decay_rate=0.5, exclude_from_weight_decay=["bias", "gain"]
    )
    optimizer, other = make("weight bias gain"), make("bias gain weight")
    train(optimizer, [1])
    other.load_state_dict(optimizer.state_dict())
    for p in params_of(other):
        p.grad = torch.zeros_like(p)
        other.state[p]["exp_avg"].zero_()
    other.step()
    bias, gain, weight = params_of(other)
    assert bias.tolist() == [2.0] * 3 and gain.tolist() == [3.0] * 3
    torch.testing.assert_close(weight, torch.full((3, 2), 0.95))


@every_optimizer
@pytest.mark.parametrize("names", [["weight", "bias", "other"], ["bias", "bias", "weight"]])
def test_other_names_are_refused(row, names: list[str]) -> None:
    optimizer = row.build(named("weight bias gain"))
    train(optimizer, [1])
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["param_names"] = names
    assert_refused(optimizer, saved, "group 0 of the dict is of other parameters.*'param_names'")
    del saved["param_groups"][0]["param_names"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias", "gain"]


def test_a_warning_that_is_an_error_leaves_the_optimizer_as_it_was() -> None:
    optimizer = trained(torch_compat.AdamW)
    before = snapshot(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="bitsandbytes"):
            optimizer.load_state_dict(renamed(optimizer.state_dict(), BITSANDBYTES))
    assert_identical(snapshot(optimizer), before)
