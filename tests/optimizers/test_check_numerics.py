"""The report of updates that vanish, values that overflow, and NaN."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from cases import DTYPE_MODES, ONE_OF_EACH, Case, TensorCase, device_of, each_backend
from optimizer_table import assert_identical, every_optimizer, parameters, snapshot, train
from parity import Bench
from stored import bits

import fused_optim
from fused_optim import torch_compat

each_case = pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
FP16, BF16 = torch.float16, torch.bfloat16

# Optimizers whose every update is about 1e-4, and what else that takes.
SMALL_STEPS: dict[str, Any] = {
    "AdamW": lambda params, **o: fused_optim.AdamW(params, lr=1e-4, **o),
    "AdamWeightDecay": lambda params, **o: fused_optim.AdamWeightDecay(
        params, lambda step: 1e-4, **o
    ),
    "Adafactor": lambda params, **o: fused_optim.Adafactor(
        params, lr=1e-4, relative_step=False, scale_parameter=False, **o
    ),
    "torch AdamW": lambda params, **o: torch_compat.AdamW(params, lr=1e-4, weight_decay=0.0, **o),
    "torch Adafactor": lambda params, **o: torch_compat.Adafactor(params, lr=1e-4, **o),
}
each_optimizer = pytest.mark.parametrize("make", SMALL_STEPS.values(), ids=SMALL_STEPS)


def with_gradient(p: torch.Tensor, value: float = 1.0) -> torch.nn.Parameter:
    p = torch.nn.Parameter(p)
    p.grad = torch.full_like(p, value)
    return p


def facts(findings: list[Any]) -> list[tuple[Any, ...]]:
    return [(f.kind, f.index, f.tensor, round(f.fraction, 3)) for f in findings]


def check_stalls(make: Any, backend: str = "eager") -> None:
    """Take every dtype and mode at once; a small parameter and a large one of each."""
    groups = []
    for dtype, mode in DTYPE_MODES:
        values = (torch.full((6, 5), 2.0**-8), torch.full((6, 5), 4.0))
        params = [with_gradient(p.to(device_of(backend), dtype)) for p in values]
        groups.append({"params": params, "low_precision": "auto" if mode == "none" else mode})
    optimizer = make(groups, backend=backend)
    for _ in range(2):
        before = [bits(p) for group in groups for p in group["params"]]
        found = optimizer.check_numerics()
        optimizer.step()
        after = [bits(p) for group in groups for p in group["params"]]
        stays = [not (a != b).any() for a, b in zip(before, after, strict=True)]
        expected = [
            (number, index)
            for number, (_, mode) in enumerate(DTYPE_MODES)
            for index in (0, 1)
            if mode == "nearest" and stays[2 * number + index]
        ]
        assert [(f.group, f.index) for f in found] == expected
        assert {(f.kind, f.tensor, f.fraction) for f in found} == {("vanishing", "parameter", 1.0)}
        assert {DTYPE_MODES[g][0] for g, index in expected if index == 1} == {BF16, FP16}


@each_optimizer
def test_nearest_stalls_and_the_other_modes_do_not(make: Any) -> None:
    check_stalls(make)


@each_backend
def test_what_kernels_store_is_read_alike(backend: str) -> None:
    check_stalls(SMALL_STEPS["AdamW"], backend)


@each_case
def test_what_is_counted_is_what_a_step_then_does(case: Case) -> None:
    """Element by element: of those with a gradient, how many the step leaves as they are."""
    tensors = [TensorCase((40, 50), dtype, "nearest") for dtype in (BF16, FP16)]
    tensors += [TensorCase((500,), torch.float32)]
    bench = Bench(case, tensors)
    bench.randomise(3)
    bench.set_gradients(-6, -2)
    for p in bench.params:
        p.grad.view(-1)[::4] = 0.0
    before = [bits(p) for p in bench.params]
    found = {f.index: f for f in bench.optimizer.check_numerics(threshold=0.0)}
    wanted = [(p.grad != 0).numpy() for p in bench.params]
    bench.optimizer.step()
    seen = 0
    for i, p in enumerate(bench.params):
        same = (bits(p) == before[i]) & wanted[i]
        share = same.sum() / wanted[i].sum()
        seen += 0 < share < 1
        # A float32 step may take torch's own operator, whose roundings are others.
        found_share = found[i].fraction if i in found else 0.0
        assert found_share == pytest.approx(share, abs=0.01 if i == 2 else 0.0)
    assert seen


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, BF16, FP16, torch.float64], ids=str)
@pytest.mark.parametrize("steps", [0, 2])
def test_nothing_is_changed(row: Any, dtype: torch.dtype, steps: int) -> None:
    optimizer = row.build(parameters(dtype), **({} if row.named else {"max_grad_norm": 1.0}))
    train(optimizer, range(1, steps + 1))
    norm = optimizer.grad_norm
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    before, states = snapshot(optimizer), len(optimizer.state)
    optimizer.check_numerics()
    assert_identical(snapshot(optimizer), before)
    assert optimizer.grad_norm is norm and len(optimizer.state) == states


@each_case
def test_the_run_goes_on_as_if_not_asked(case: Case) -> None:
    tensors = [TensorCase((20, 30), dtype, mode) for dtype, mode in DTYPE_MODES]
    asked, plain = Bench(case, tensors), Bench(case, tensors)
    for bench in (asked, plain):
        bench.randomise_params(-1, 0)
        for _ in range(3):
            bench.set_gradients(-1, 0)
            if bench is asked:
                bench.optimizer.check_numerics()
            bench.optimizer.step()
    assert_identical(snapshot(asked.optimizer), snapshot(plain.optimizer))


def test_a_rate_too_small_even_for_float32() -> None:
    p = with_gradient(torch.full((10,), 100.0))
    optimizer = fused_optim.AdamW([("layer.weight", p)], lr=1e-9)
    (finding,) = optimizer.check_numerics()
    assert finding.name == "layer.weight"
    assert str(finding) == (
        "parameter 0 ('layer.weight') of group 0 (float32): 100 % of the updates are too small to "
        "change what is stored; the learning rate is too small even for float32 values; raise it"
    )
    for mode in ("split", "master", "stochastic", "kahan"):
        q = with_gradient(torch.full((10,), 100.0).bfloat16())
        (finding,) = fused_optim.AdamW([q], lr=1e-9, low_precision=mode).check_numerics()
        assert (finding.kind, finding.mode, finding.fraction) == ("vanishing", mode, 1.0)


def test_a_rate_or_gradient_of_zero_is_meant() -> None:
    p, q = with_gradient(torch.ones(4).bfloat16()), with_gradient(torch.ones(4).bfloat16(), 0.0)
    options = {"low_precision": "nearest"}
    assert fused_optim.AdamW([p], lr=0.0, **options).check_numerics() == []
    assert fused_optim.AdamW([q], lr=1e-4, **options).check_numerics() == []
    frozen = {"lr": 0.0, "relative_step": False, **options}
    assert fused_optim.Adafactor([p], **frozen).check_numerics() == []


def test_threshold() -> None:
    p = with_gradient(torch.tensor([2.0**-10] * 3 + [4.0] * 7).bfloat16())
    optimizer = fused_optim.AdamW([p], lr=1e-4, low_precision="nearest")
    assert facts(optimizer.check_numerics()) == [("vanishing", 0, "parameter", 0.7)]
    assert optimizer.check_numerics(threshold=0.7) == []
    for bad in (-0.1, 1.0, float("nan"), "half"):
        with pytest.raises(ValueError, match="Invalid threshold"):
            optimizer.check_numerics(threshold=bad)


def test_clipping_counts() -> None:
    """Adafactor's first update has the gradient's sign only where nothing clips its square."""
    p = with_gradient(torch.full((8,), 1.0).bfloat16(), 100.0)
    options = {"lr": 1e-2, "eps": 1.0, "low_precision": "nearest"}
    assert fused_optim.AdamW([p], **options).check_numerics() == []
    clipped = fused_optim.AdamW([p], max_grad_norm=1e-3, **options)
    assert facts(clipped.check_numerics()) == [("vanishing", 0, "parameter", 1.0)]
    by_name = fused_optim.AdamWeightDecay(
        [p], 1e-2, epsilon=1.0, clipnorm=1e-3, low_precision="nearest"
    )
    assert facts(by_name.check_numerics()) == [("vanishing", 0, "parameter", 1.0)]


@pytest.mark.parametrize("mode", ["nearest", "stochastic", "kahan", "master"])
def test_parameters_that_overflow_float16(mode: str) -> None:
    p = with_gradient(torch.tensor([65504.0, 1.0, 1.0, 1.0]).half(), -1.0)
    optimizer = fused_optim.AdamW([p], lr=100.0, low_precision=mode)
    (finding,) = optimizer.check_numerics()
    assert facts([finding]) == [("overflow", 0, "parameter", 0.25)]
    assert str(finding).endswith(
        "25 % of the values of the parameter overflow float16; use bfloat16 parameters or a "
        "smaller learning rate: float16 ends at 65504"
    )
    optimizer.step()
    kinds = facts(optimizer.check_numerics())
    assert ("non-finite", 0, "parameter", 0.25) in kinds


def test_moments_that_overflow() -> None:
    p = torch.nn.Parameter(torch.ones(4))
    p.grad = torch.tensor([1e6, 1.0, 1.0, 1.0])
    optimizer = fused_optim.AdamW([p], state_dtype=FP16)
    (finding,) = optimizer.check_numerics()
    assert facts([finding]) == [("overflow", 0, "exp_avg", 0.25)]
    assert "use state_dtype=torch.bfloat16" in str(finding) and finding.dtype is FP16
    p.grad = torch.tensor([1e25, 1.0, 1.0, 1.0])
    for optimizer, key in (
        (fused_optim.AdamW([p]), "exp_avg_sq"),
        (torch_compat.AdamW([p], amsgrad=True), "max_exp_avg_sq"),
        (fused_optim.Adafactor([p]), "exp_avg_sq"),
        (torch_compat.Adafactor([p]), "variance"),
    ):
        found = [f for f in optimizer.check_numerics() if f.tensor == key]
        assert facts(found) == [("overflow", 0, key, 0.25)]
        assert "clip them with max_grad_norm" in str(found[0])
    q = torch.nn.Parameter(torch.ones(4, 4))
    q.grad = torch.ones(4, 4)
    q.grad[1, 2] = 1e25
    found = facts(fused_optim.Adafactor([q]).check_numerics())
    assert ("overflow", 0, "exp_avg_sq_row", 0.25) in found
    assert ("overflow", 0, "exp_avg_sq_col", 0.25) in found


@each_optimizer
def test_gradients_that_are_not_finite(make: Any) -> None:
    p = with_gradient(torch.ones(2, 5).bfloat16())
    p.grad[0, 1:3] = torch.tensor([torch.nan, torch.inf])
    optimizer = make([p])
    found = optimizer.check_numerics()
    assert facts(found) == [("non-finite", 0, "gradient", 0.2)]
    assert "20 % of the values of the gradient are infinite or NaN; skip this step" in str(found[0])
    optimizer.step()
    p.grad = torch.ones_like(p)
    assert "parameter" in {f.tensor for f in optimizer.check_numerics() if f.kind == "non-finite"}


def test_groups_and_order() -> None:
    params = [with_gradient(torch.ones(3, dtype=d)) for d in (BF16, torch.float32, BF16, BF16)]
    params.insert(1, torch.nn.Parameter(torch.ones(3, dtype=BF16)))  # no gradient, no finding
    params.append(with_gradient(torch.ones(0, dtype=BF16)))
    groups = [{"params": params[:2]}, {"params": params[2:], "low_precision": "nearest"}]
    optimizer = fused_optim.AdamW(groups, lr=1e-4, low_precision="nearest")
    places = [(f.group, f.index) for f in optimizer.check_numerics()]
    assert places == [(0, 0), (1, 1), (1, 2)]


def test_main_grad_is_what_counts() -> None:
    p = torch.nn.Parameter(torch.ones(4).bfloat16())
    p.main_grad = torch.ones(4)
    optimizer = fused_optim.AdamW([p], lr=1e-4, low_precision="nearest")
    assert facts(optimizer.check_numerics()) == [("vanishing", 0, "parameter", 1.0)]


def test_without_gradients_it_says_when_to_call() -> None:
    optimizer = fused_optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(RuntimeError, match="no parameter has a gradient; call it after backward"):
        optimizer.check_numerics()


def test_findings_are_frozen() -> None:
    p = with_gradient(torch.ones(4).bfloat16())
    (finding,) = fused_optim.AdamW([p], lr=1e-4, low_precision="nearest").check_numerics()
    with pytest.raises(dataclasses.FrozenInstanceError):
        finding.kind = "none"


@pytest.mark.parametrize(("name", "copies"), [("AdamW", 1 / 8), ("Adafactor", 1)])
def test_temporaries_are_blocks_or_one_copy(name: str, copies: float) -> None:
    """The largest tensor made on the way, in float32 copies of the parameter."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for t in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in known:
                    sizes.append(t.untyped_storage().nbytes())
            return result

    p = with_gradient(torch.ones(4096, 1024).bfloat16())
    optimizer = SMALL_STEPS[name]([p])
    optimizer.step()
    tensors = [p, p.grad, *optimizer.state[p].values()]
    known = {t.untyped_storage().data_ptr() for t in tensors if isinstance(t, torch.Tensor)}
    with Watch():
        optimizer.check_numerics()
    assert max(sizes) <= p.numel() * 4 * copies
