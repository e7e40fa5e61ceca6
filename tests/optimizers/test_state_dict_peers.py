"""State dicts from peers and for peers: torch.optim, transformers' Adafactor, apex."""

import copy
import warnings

import pytest
import torch
from optimizer_table import (
    assert_identical,
    parameters,
    params_of,
    set_gradients,
    snapshot,
    through_disk,
    train,
)

import fused_optim
from fused_optim import torch_compat

STEP_KINDS = {
    "int": int,
    "float": float,
    "scalar": lambda step: torch.tensor(float(step)),
    "int64": lambda step: torch.tensor(int(step)),
    "one-element": lambda step: torch.tensor([float(step)]),
}

OURS_AND_TORCHS = {
    "AdamW": (torch_compat.AdamW, torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "AdamW-amsgrad": (torch_compat.AdamW, torch.optim.AdamW, {"lr": 1e-2, "amsgrad": True}),
    "Adam": (torch_compat.Adam, torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-3}),
    "Adafactor": (torch_compat.Adafactor, torch.optim.Adafactor, {"lr": 5e-3, "d": 2.0}),
}

OURS_AND_TRANSFORMERS = {
    "default": {"weight_decay": 0.1},
    "momentum": {"beta1": 0.9, "warmup_init": True},
    "lr": {"lr": 1e-2, "relative_step": False, "scale_parameter": False},
    "lr-scaled": {"lr": 1e-2, "relative_step": False, "clip_threshold": 2.0, "decay_rate": -0.7},
}

PRECISIONS = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-15},
    torch.float32: {"rtol": 2e-6, "atol": 2e-7},
}


def with_steps(state_dict, kind):
    """A copy of a state dict whose steps are of another kind."""
    state_dict = copy.deepcopy(state_dict)
    for state in state_dict["state"].values():
        state["step"] = STEP_KINDS[kind](float(state["step"]))
    return state_dict


def twin_parameters(optimizer):
    return [torch.nn.Parameter(p.detach().clone()) for p in params_of(optimizer)]


def assert_next_steps_equal(ours, theirs, steps=(4, 5)):
    train(ours, steps)
    train(theirs, steps)
    dtype = params_of(ours)[0].dtype
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(p, q, **PRECISIONS[dtype])


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("flags", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("kind", STEP_KINDS)
@pytest.mark.parametrize("name", OURS_AND_TORCHS)
def test_torchs_state_dicts_load(name, flags, kind, dtype):
    ours_class, theirs_class, options = OURS_AND_TORCHS[name]
    if "fused" in flags and name == "Adafactor":
        flags = {}
    theirs = theirs_class(parameters(dtype), **options, **flags)
    train(theirs, [1, 2, 3], skip=[1])
    ours = ours_class(twin_parameters(theirs), lr=0.5)
    ours.load_state_dict(through_disk(with_steps(theirs.state_dict(), kind)))
    assert ours.param_groups[0]["lr"] == options["lr"]
    for p in params_of(ours)[::2]:
        assert ours.state[p]["step"] == 3 and type(ours.state[p]["step"]) is int
    assert not ours.state[params_of(ours)[1]]
    assert_next_steps_equal(ours, theirs)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("flags", [{"foreach": False}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("name", OURS_AND_TORCHS)
def test_torch_loads_our_state_dicts(name, flags, dtype):
    ours_class, theirs_class, options = OURS_AND_TORCHS[name]
    ours = ours_class(parameters(dtype), **options)
    train(ours, [1, 2, 3], skip=[1])
    theirs = theirs_class(twin_parameters(ours), lr=0.5, **flags)
    theirs.load_state_dict(through_disk(ours.state_dict()))
    assert theirs.param_groups[0]["lr"] == options["lr"]
    assert_next_steps_equal(ours, theirs)


def test_a_fused_torch_optimizer_loads_our_state_and_stays_so():
    ours = torch_compat.AdamW(parameters(), fused=True)
    train(ours, [1, 2, 3])
    theirs = torch.optim.AdamW(twin_parameters(ours), fused=True)
    theirs.load_state_dict(through_disk(ours.state_dict()))
    assert theirs.param_groups[0]["fused"] is True
    assert_next_steps_equal(ours, theirs)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("kind", STEP_KINDS)
@pytest.mark.parametrize("name", OURS_AND_TRANSFORMERS)
def test_transformers_state_dicts_load_and_ours_load_there(name, kind, dtype):
    adafactor = pytest.importorskip("transformers.optimization").Adafactor
    options = OURS_AND_TRANSFORMERS[name]
    theirs = adafactor(parameters(dtype), **options)
    train(theirs, [1, 2, 3])
    ours = fused_optim.Adafactor(twin_parameters(theirs))
    ours.load_state_dict(through_disk(with_steps(theirs.state_dict(), kind)))
    again = adafactor(twin_parameters(theirs))
    again.load_state_dict(through_disk(ours.state_dict()))
    train(theirs, [4, 5])
    assert_next_steps_equal(ours, again)
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(p, q, **PRECISIONS[dtype])
    for p in params_of(ours):
        assert all(t.dtype is dtype for k, t in ours.state[p].items() if k != "step")


@pytest.mark.parametrize("source", ["torch", "transformers"])
def test_adafactors_of_both_kinds_exchange_their_statistics(source):
    """Where their formulas agree: epsilon negligible, lr at the relative step size's ceiling."""
    transformers = pytest.importorskip("transformers.optimization")
    if source == "torch":
        theirs = torch.optim.Adafactor(parameters(torch.float64), lr=1e-2, d=2.0)
        ours = fused_optim.Adafactor
    else:
        theirs = transformers.Adafactor(parameters(torch.float64), clip_threshold=2.0)
        ours = torch_compat.Adafactor
    train(theirs, [1, 2, 3])
    ours = ours(twin_parameters(theirs))
    ours.load_state_dict(through_disk(theirs.state_dict()))
    set_gradients(params_of(ours), 4)
    set_gradients(params_of(theirs), 4)
    ours.step()
    theirs.step()
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias_correction", [True, 0])
@pytest.mark.parametrize("kind", STEP_KINDS)
def test_apex_keeps_the_step_in_the_group(kind, bias_correction):
    options = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    ours = fused_optim.AdamW(parameters(), **options, correct_bias=bool(bias_correction))
    train(ours, [1, 2, 3])
    apex = copy.deepcopy(ours.state_dict())
    for state in apex["state"].values():
        del state["step"]
    group = {**options, "bias_correction": bias_correction, "step": STEP_KINDS[kind](3)}
    apex["param_groups"] = [{**group, "params": [0, 1, 2, 3]}]
    loaded = fused_optim.AdamW(twin_parameters(ours))
    loaded.load_state_dict(apex)
    train(ours, [4, 5])
    train(loaded, [4, 5])
    assert_identical(snapshot(loaded), snapshot(ours))
    assert apex["param_groups"][0]["bias_correction"] is bias_correction


def test_torch_compat_takes_apex_state_but_says_what_it_can_not_continue():
    moments = [
        {"exp_avg": torch.ones_like(p), "exp_avg_sq": torch.ones_like(p)} for p in parameters()
    ]
    group = {"lr": 1e-2, "bias_correction": True, "step": 3, "params": [0, 1, 2, 3]}
    state_dict = {"state": dict(enumerate(moments)), "param_groups": [group]}
    ours, theirs = torch_compat.AdamW(parameters()), torch.optim.AdamW(parameters(), lr=1e-2)
    ours.load_state_dict(state_dict)
    moments = [{**m, "step": torch.tensor(3.0)} for m in copy.deepcopy(moments)]
    theirs.load_state_dict({**theirs.state_dict(), "state": dict(enumerate(moments))})
    assert_next_steps_equal(ours, theirs)
    group["bias_correction"] = False
    with pytest.warns(UserWarning, match="without bias correction.*correct_bias=False"):
        ours.load_state_dict(state_dict)


@pytest.mark.parametrize("ours_class", [torch_compat.AdamW, torch_compat.Adam])
def test_a_class_stays_itself_as_far_as_torchs_does(ours_class):
    """torch.optim.AdamW decays decoupled whatever it loads; Adam does as the dict says."""
    theirs_class = getattr(torch.optim, ours_class.__name__)
    for saved_class in (torch.optim.AdamW, torch.optim.Adam):
        saved = saved_class(parameters(torch.float64), weight_decay=0.5)
        train(saved, [1, 2, 3])
        pair = [make(twin_parameters(saved)) for make in (ours_class, theirs_class)]
        for optimizer in pair:
            optimizer.load_state_dict(through_disk(saved.state_dict()))
        assert_next_steps_equal(*pair)


def test_foreign_flags_change_nothing():
    flags = {"fused": True, "foreach": True, "capturable": True, "differentiable": True, "odd": 1}
    for make in (torch_compat.AdamW, fused_optim.AdamW, fused_optim.AdamWeightDecay):
        plain, flagged = make(parameters()), make(parameters())
        train(plain, [1, 2])
        saved = through_disk(plain.state_dict())
        saved["param_groups"] = [{**group, **flags} for group in saved["param_groups"]]
        flagged.load_state_dict(saved)
        assert flagged.settings(flagged.param_groups[0])["capturable"] is False
        for p, q in zip(params_of(flagged), params_of(plain), strict=True):
            p.data.copy_(q.data)
        train(plain, [3])
        train(flagged, [3])
        assert_identical(snapshot(flagged)[:2], snapshot(plain)[:2])
        flagged.zero_grad(set_to_none=False)


def test_amsgrad_loaded_where_there_is_none_is_reported_and_ignored():
    theirs = torch.optim.AdamW(parameters(), amsgrad=True)
    train(theirs, [1, 2, 3])
    saved = theirs.state_dict()
    without = copy.deepcopy(saved)
    without["param_groups"][0]["amsgrad"] = False
    ours, plain = (fused_optim.AdamW(twin_parameters(theirs)) for _ in range(2))
    with pytest.warns(UserWarning, match=r"amsgrad=True.*torch_compat\.AdamW\(amsgrad=True\)"):
        ours.load_state_dict(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.load_state_dict(without)
    train(ours, [4])
    train(plain, [4])
    assert_identical(snapshot(ours)[0], snapshot(plain)[0])


@pytest.mark.parametrize("theirs_class", [torch.optim.AdamW, fused_optim.AdamW])
def test_a_schedule_on_the_optimizer_goes_on_where_a_peer_was(theirs_class):
    """A peer's dict has no count of the optimizer's own steps, but one for each parameter."""
    theirs = theirs_class([{"params": parameters()}, {"params": parameters(shapes=((3,),))}])
    train(theirs, [1, 2, 3], skip=[0, 4])
    asked = []
    ours = fused_optim.AdamWeightDecay(
        [{"params": parameters()}, {"params": parameters(shapes=((3,),))}],
        lambda step: asked.append(step) or 0.1 / (step + 1),
    )
    ours.load_state_dict(through_disk(theirs.state_dict()))
    assert [group["iterations"] for group in ours.param_groups] == [3, 3]
    asked.clear()
    train(ours, [4])
    assert asked == [3]
    assert [group["lr"] for group in ours.param_groups] == [0.1 / 4, 0.1 / 4]
    again = fused_optim.AdamWeightDecay(
        [{"params": parameters()}, {"params": parameters(shapes=((3,),))}], lambda step: 0.1
    )
    again.load_state_dict(through_disk(ours.state_dict()))
    assert [group["iterations"] for group in again.param_groups] == [4, 4]
