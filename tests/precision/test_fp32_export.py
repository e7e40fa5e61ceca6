"""Weights out of a model and back in, at the float32 value that each precision mode keeps."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from cases import LOW_PRECISION, each_backend
from optimizer_table import (
    assert_identical,
    every_optimizer,
    params_of,
    row,
    set_gradients,
    snapshot,
    through_disk,
    train,
)
from stored import decoded
from tolerances import dtype_name

import fused_optim

each_mode = pytest.mark.parametrize(
    ("dtype", "mode"), LOW_PRECISION, ids=[f"{dtype_name(d)}-{m}" for d, m in LOW_PRECISION]
)
EXACT = ("split", "master")


class Model(torch.nn.Module):
    """Tied weights, a buffer, a parameter that is not optimized, and one that is not contiguous."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = torch.nn.Embedding(11, 6, dtype=dtype)
        self.norm = torch.nn.BatchNorm1d(6, dtype=dtype)
        self.head = torch.nn.Linear(6, 11, dtype=dtype)
        self.head.weight = self.embedding.weight
        self.turned = torch.nn.Parameter(torch.randn(5, 7).to(dtype).t())
        self.frozen = torch.nn.Parameter(torch.randn(3).to(dtype), requires_grad=False)

    def get_extra_state(self) -> str:
        return "not a tensor"

    def set_extra_state(self, state: str) -> None:
        assert state == "not a tensor"

    def trained_parameters(self) -> list[tuple[str, torch.Tensor]]:
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]


def optimizer_of(model: Model, name: str = "AdamW", **options: Any) -> torch.optim.Optimizer:
    """Return an optimizer of two groups."""
    named = model.trained_parameters()
    if not row(name).named:
        named = [p for _, p in named]
    groups = [{"params": named[:2]}, {"params": named[2:]}]
    return row(name).build(groups, **options)


def trained(
    mode: str, dtype: torch.dtype = torch.bfloat16, name: str = "AdamW", **options: Any
) -> tuple[Model, torch.optim.Optimizer]:
    model = Model(dtype)
    optimizer = optimizer_of(model, name, low_precision=mode, **options)
    train(optimizer, range(1, 5))
    return model, optimizer


def full_values(model: Model, optimizer: torch.optim.Optimizer, mode: str) -> dict[str, Any]:
    """Return what parameters stand for, by the references' own decoders."""
    return {
        name: torch.from_numpy(decoded(p, optimizer.state[p], mode)).float()
        for name, p in model.trained_parameters()
    }


def check_export(exported: dict[str, Any], model: Model, values: dict[str, Any]) -> None:
    plain = model.state_dict()
    assert list(exported) == list(plain)
    assert exported._metadata == plain._metadata
    for name, value in plain.items():
        full = values.get("embedding.weight" if name == "head.weight" else name)
        if full is None:
            assert exported[name] is value or exported[name].data_ptr() == value.data_ptr()
        else:
            assert exported[name].dtype is torch.float32 and not exported[name].requires_grad
            assert_identical(exported[name].cpu(), full, name)
    assert exported["head.weight"] is exported["embedding.weight"]


@each_backend
@each_mode
def test_every_mode_exports_all_it_keeps(dtype: torch.dtype, mode: str, backend: str) -> None:
    model, optimizer = trained(mode, dtype, backend=backend)
    before = snapshot(optimizer)
    exported = optimizer.fp32_state_dict(model)
    check_export(exported, model, full_values(model, optimizer, mode))
    assert_identical(snapshot(optimizer), before)
    if mode in ("split", "master", "kahan"):
        shown = model.state_dict()["turned"].float()
        assert not torch.equal(exported["turned"], shown)


@every_optimizer
def test_every_optimizer_exports(row: Any) -> None:
    model, optimizer = trained("split", name=row.name)
    check_export(optimizer.fp32_state_dict(model), model, full_values(model, optimizer, "split"))


@each_mode
def test_before_the_first_step_parameters_are_widened(dtype: torch.dtype, mode: str) -> None:
    model = Model(dtype)
    optimizer = optimizer_of(model, low_precision=mode)
    values = {name: p.detach().float() for name, p in model.trained_parameters()}
    check_export(optimizer.fp32_state_dict(model), model, values)
    assert not optimizer.state


def test_float32_and_float64_parameters_are_as_they_are() -> None:
    for dtype in (torch.float32, torch.float64):
        model, optimizer = trained("auto", dtype)
        plain, exported = model.state_dict(), optimizer.fp32_state_dict(model)
        assert all(exported[k] is v or exported[k].data_ptr() == v.data_ptr()
                   for k, v in plain.items())  # fmt: skip
        assert {exported[n].dtype for n, _ in model.trained_parameters()} == {dtype}


def test_a_mode_per_group() -> None:
    model = Model()
    named = model.trained_parameters()
    modes = dict(zip([n for n, _ in named], ("split", "kahan", "nearest", "master"), strict=False))
    groups = [{"params": [p], "low_precision": modes.get(n, "split")} for n, p in named]
    optimizer = fused_optim.AdamW(groups, lr=1e-2)
    train(optimizer, [1, 2, 3])
    values = {
        n: torch.from_numpy(decoded(p, optimizer.state[p], modes.get(n, "split"))).float()
        for n, p in named
    }
    check_export(optimizer.fp32_state_dict(model), model, values)


@pytest.mark.parametrize("mode", ["split", "kahan", "master"])
def test_what_was_written_since_the_last_step_wins(mode: str) -> None:
    model, optimizer = trained(mode)
    with torch.no_grad():
        model.turned.zero_()
        model.embedding.weight[3:] = 2.0
    exported = optimizer.fp32_state_dict(model)
    tiny = 0.0 if mode == "master" else 2.0**-120  # what split can't tell from a remainder
    assert exported["turned"].abs().max().item() <= tiny
    rows = exported["embedding.weight"]
    half_ulp = 0.0 if mode == "master" else 2.0**-7
    assert (rows[3:] - 2.0).abs().max().item() <= half_ulp
    values = full_values(model, optimizer, mode)
    assert torch.equal(rows, values["embedding.weight"])


def test_prefix_and_device() -> None:
    model, optimizer = trained("split")
    whole = torch.nn.ModuleDict({"inner": model})
    direct = optimizer.fp32_state_dict(model)
    for prefixed in (optimizer.fp32_state_dict(model, prefix="inner."),
                     optimizer.fp32_state_dict(whole)):  # fmt: skip
        assert list(prefixed) == ["inner." + name for name in direct]
    on_meta = optimizer.fp32_state_dict(model, device="meta")
    tensors = [t for t in on_meta.values() if isinstance(t, torch.Tensor)]
    assert {t.device.type for t in tensors} == {"meta"}


@pytest.mark.parametrize("old", ["split", "kahan", "master"])
@pytest.mark.parametrize("new", ["nearest", "split", "kahan", "master"])
def test_state_that_another_mode_saved_counts(old: str, new: str) -> None:
    model, optimizer = trained(old)
    later = optimizer_of(model, low_precision=new)
    later.load_state_dict(through_disk(optimizer.state_dict()))
    check_export(later.fp32_state_dict(model), model, full_values(model, optimizer, old))


def test_a_bfloat16_remainder_says_nothing_of_float16() -> None:
    model, optimizer = trained("split")
    half = Model(torch.float16)
    later = optimizer_of(half)
    later.load_state_dict(through_disk(optimizer.state_dict()))
    values = {name: p.detach().float() for name, p in half.trained_parameters()}
    check_export(later.fp32_state_dict(half), half, values)


# --- and back -----------------------------------------------------------------------------------


def random_checkpoint(seed: int = 5) -> dict[str, Any]:
    """Return a float32 checkpoint of `Model` whose values need all their bits."""
    return copy.deepcopy(Model(torch.float32, seed).state_dict())


@each_backend
@each_mode
@pytest.mark.parametrize("steps", [0, 3])
def test_a_float32_checkpoint_comes_back(
    dtype: torch.dtype, mode: str, steps: int, backend: str
) -> None:
    model = Model(dtype)
    optimizer = optimizer_of(model, low_precision=mode, backend=backend)
    train(optimizer, range(1, steps + 1))
    moments = [optimizer.state[p].get("exp_avg") for p in params_of(optimizer)]
    moments = [None if m is None else m.clone() for m in moments]
    checkpoint = random_checkpoint()
    assert optimizer.load_fp32_state_dict(model, checkpoint) == ([], [])
    for name, p in model.trained_parameters():
        half_ulp = 2.0**-9 if dtype is torch.bfloat16 else 2.0**-12
        error = (p.detach().float() - checkpoint[name]).abs()
        assert (error <= 2 * half_ulp * checkpoint[name].abs() + 2.0**-25).all(), name
    exported = optimizer.fp32_state_dict(model)
    for name, _ in model.trained_parameters():
        if mode in EXACT:
            assert_identical(exported[name], checkpoint[name], name)
        elif mode == "kahan":
            error = (exported[name] - checkpoint[name]).abs()
            kept = 2.0**-17 if dtype is torch.bfloat16 else 2.0**-22
            assert (error <= kept * checkpoint[name].abs() + 2.0**-25).all(), name
        else:
            assert torch.equal(exported[name], checkpoint[name].to(dtype).float()), name
    for name in ("norm.running_mean", "frozen"):
        assert torch.equal(model.state_dict()[name], checkpoint[name].to(dtype))
    for p, m in zip(params_of(optimizer), moments, strict=True):
        state = optimizer.state[p]
        assert state["step"] == steps
        assert torch.equal(state["exp_avg"], torch.zeros_like(p).float() if m is None else m)


@pytest.mark.parametrize("mode", EXACT)
@pytest.mark.parametrize("special", [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-42, 3.4e38, 1.00390625])
def test_special_values_come_back(mode: str, special: float) -> None:
    model = Model()
    optimizer = optimizer_of(model, low_precision=mode)
    checkpoint = random_checkpoint()
    checkpoint["turned"].fill_(special)
    optimizer.load_fp32_state_dict(model, checkpoint)
    exported = optimizer.fp32_state_dict(model)["turned"]
    if np.isnan(special):
        assert exported.isnan().all()
    else:
        assert_identical(exported, checkpoint["turned"])


@pytest.mark.parametrize("mode", EXACT)
def test_training_goes_on_as_in_float32(mode: str) -> None:
    """From a float32 run's checkpoint, the same gradients give the same float32 values."""
    full = Model(torch.float32)
    reference = optimizer_of(full, state_dtype=torch.float32)
    train(reference, [1, 2])
    model = Model()
    optimizer = optimizer_of(model, low_precision=mode)
    optimizer.load_state_dict(through_disk(reference.state_dict()))
    optimizer.load_fp32_state_dict(model, through_disk(dict(full.state_dict())))
    for step in (3, 4, 5):
        for opt in (reference, optimizer):
            set_gradients(params_of(opt), step)
        for p, q in zip(params_of(reference), params_of(optimizer), strict=True):
            p.grad = q.grad.float()
        reference.step()
        optimizer.step()
    exported = optimizer.fp32_state_dict(model)
    for name, p in full.trained_parameters():
        # torch's own operator, which serves float32 on a CPU, rounds otherwise.
        torch.testing.assert_close(exported[name], p.detach(), rtol=1e-6, atol=1e-7)


def test_loading_into_the_model_alone_keeps_16_bits() -> None:
    """Which is why there is a method for it."""
    model, optimizer = trained("master")
    checkpoint = random_checkpoint()
    model.load_state_dict(checkpoint)
    exported = optimizer.fp32_state_dict(model)
    assert torch.equal(exported["turned"], checkpoint["turned"].bfloat16().float())


def test_names_that_do_not_fit_are_the_models_affair() -> None:
    model, optimizer = trained("split")
    checkpoint = random_checkpoint()
    del checkpoint["head.bias"], checkpoint["frozen"]
    with pytest.raises(RuntimeError, match="Missing key.*frozen"):
        optimizer.load_fp32_state_dict(model, checkpoint)
    kept = optimizer.fp32_state_dict(model)["head.bias"]
    missing, unexpected = optimizer.load_fp32_state_dict(
        model, {**checkpoint, "more": torch.ones(1)}, strict=False
    )
    assert sorted(missing) == ["frozen", "head.bias"] and unexpected == ["more"]
    assert_identical(optimizer.fp32_state_dict(model)["head.bias"], kept)


def test_errors_say_what_to_do_and_change_nothing() -> None:
    model, optimizer = trained("split")
    before = copy.deepcopy(model.state_dict()), snapshot(optimizer)
    other = Model()
    pattern = (
        r"(load_)?fp32_state_dict: 5 of the optimizer's 5 parameters are not in the model, "
        r"parameter 0 of group 0 is the first; pass the very model"
    )
    with pytest.raises(ValueError, match=pattern):
        optimizer.fp32_state_dict(other)
    with pytest.raises(ValueError, match=pattern):
        optimizer.load_fp32_state_dict(other, random_checkpoint())
    checkpoint = random_checkpoint()
    checkpoint["turned"] = checkpoint["turned"].t()
    with pytest.raises(ValueError, match=r"'turned' has shape \(5, 7\) .* and \(7, 5\) in the"):
        optimizer.load_fp32_state_dict(model, checkpoint)
    assert_identical(dict(model.state_dict()), dict(before[0]))
    assert_identical(snapshot(optimizer), before[1])


@pytest.mark.parametrize("method", ["fp32_state_dict", "load_fp32_state_dict"])
def test_what_is_no_module_is_refused_in_words(method: str) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = fused_optim.AdamW(model.parameters())
    arguments = (model.state_dict(),) * (2 if method.startswith("load") else 1)
    with pytest.raises(TypeError, match=f"{method} takes the model .*, not a OrderedDict"):
        getattr(optimizer, method)(*arguments)


def test_frozen_parameters_are_exported_whatever_mode_they_could_not_train_in() -> None:
    model = torch.nn.ModuleList(
        [torch.nn.Linear(2, 2).half().requires_grad_(False), torch.nn.Linear(2, 2).bfloat16()]
    )
    optimizer = fused_optim.AdamW(model.parameters(), low_precision="split")
    weights = optimizer.fp32_state_dict(model)
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert torch.equal(weights["0.weight"], model[0].weight.float())
    optimizer.load_fp32_state_dict(model, {name: value + 1 for name, value in weights.items()})
    assert torch.equal(model[0].weight.float(), (weights["0.weight"] + 1).half().float())
    assert model[0].weight not in optimizer.state
