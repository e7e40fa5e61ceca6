"""The fast path of the eager AdamW through torch's own fused operators, beside the plain one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import ADAMW, SHAPES, Case, TensorCase, eager_only
from parity import Bench
from stored import bits
from tolerances import as_float64, assert_same_bits, assert_within, ulp

import fused_optim
from fused_optim import torch_compat
from fused_optim.backends.eager import torch_fused

pytestmark = eager_only
FLOAT32 = [TensorCase(shape, torch.float32) for shape in SHAPES]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the buckets that took the fast path, as they come."""
    sizes: list[int] = []
    run = torch_fused.run_

    def spy(bucket: Any) -> None:
        sizes.append(len(bucket.entries))
        run(bucket)

    monkeypatch.setattr(torch_fused, "run_", spy)
    return sizes


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each block of the plain path, whether the operator took it, as they come."""
    taken: list[bool] = []
    update = torch_fused.update_

    def spy(*registers: Any) -> bool:
        taken.append(update(*registers))
        return taken[-1]

    monkeypatch.setattr(torch_fused, "update_", spy)
    return taken


@pytest.fixture
def no_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_fused, "available", lambda: False)


def test_this_torch_has_the_operators() -> None:
    """If a new torch changes them, this says so; the optimizers go on with the plain path."""
    assert torch_fused.available()


@pytest.mark.parametrize("case", ADAMW, ids=str)
def test_float32_takes_it(case: Case, calls: list[int]) -> None:
    bench = Bench(case, FLOAT32)
    bench.randomise(3)
    bench.step_and_check(3, bench.set_gradients())
    assert calls == [len(FLOAT32)]


@pytest.mark.parametrize("case", ADAMW, ids=str)
def test_plain_path(case: Case, calls: list[int], no_fast_path: None) -> None:
    bench = Bench(case, FLOAT32)
    bench.randomise(3)
    bench.step_and_check(3, bench.set_gradients())
    assert calls == []


@pytest.mark.parametrize("case", ADAMW, ids=str)
def test_both_paths_agree(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, plain = Bench(case, FLOAT32), Bench(case, FLOAT32)
    for bench in (fast, plain):
        bench.randomise_params(-1, 0)
    start = [bits(p) for p in plain.params]
    for _ in range(5):
        for bench in (fast, plain):
            bench.set_gradients(-1, 0)
        fast.optimizer.step()
        with monkeypatch.context() as patch:
            patch.setattr(torch_fused, "available", lambda: False)
            plain.optimizer.step()
    for p, q, first in zip(fast.params, plain.params, start, strict=True):
        moved = abs(bits(q).astype("float64") - first)
        assert_within(p, q, 10 * ulp(q, "float32") + 1e-5 * moved, "parameter")


def other_buckets() -> Iterator[tuple[str, TensorCase, dict[str, Any]]]:
    yield "bfloat16 parameter", TensorCase((4,), torch.bfloat16, "nearest"), {}
    yield "float64 parameter", TensorCase((4,), torch.float64), {}
    yield "bfloat16 gradient", TensorCase((4,), torch.float32, "none", torch.bfloat16), {}
    yield "float64 gradient", TensorCase((4,), torch.float32, "none", torch.float64), {}
    state = {"state_dtype": torch.bfloat16}
    yield "bfloat16 moments", TensorCase((4,), torch.float32, **state), {}
    yield "float16 momentum", TensorCase((4,), torch.float32, state_dtype=torch.float16), {}
    yield "clipping", TensorCase((4,), torch.float32), {"max_grad_norm": 1.0}


@pytest.mark.parametrize(
    ("tensor", "options"), [pytest.param(t, o, id=name) for name, t, o in other_buckets()]
)
def test_what_does_not_take_it(
    tensor: TensorCase, options: dict[str, Any], calls: list[int]
) -> None:
    for case in ADAMW[::5]:
        bench = Bench(case, [tensor], **options)
        bench.set_gradients()
        bench.optimizer.step()
    assert calls == []


BLOCKWISE = [
    TensorCase((3, 5), torch.float32, "none", torch.bfloat16),
    *(
        TensorCase((3, 5), torch.bfloat16, mode)
        for mode in ("nearest", "stochastic", "kahan", "split", "master")
    ),
]


@pytest.mark.parametrize("case", ADAMW[::3], ids=str)
@pytest.mark.parametrize("tensor", BLOCKWISE, ids=str)
def test_blocks_take_the_operator(case: Case, tensor: TensorCase, blocks: list[bool]) -> None:
    bench = Bench(case, [tensor])
    bench.randomise(3)
    bench.step_and_check(3, bench.set_gradients())
    assert blocks == [True]


@pytest.mark.parametrize("case", ADAMW[::3], ids=str)
def test_clipped_blocks_take_the_operator(
    case: Case, blocks: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, plain = (Bench(case, [FLOAT32[-1]], max_grad_norm=0.5) for _ in range(2))
    for bench in (fast, plain):
        bench.randomise(3)
        bench.set_gradients()
    start = as_float64(plain.params[0])
    fast.optimizer.step()
    monkeypatch.setattr(torch_fused, "available", lambda: False)
    plain.optimizer.step()
    assert blocks == [True, False]
    p, q = (as_float64(bench.params[0]) for bench in (fast, plain))
    assert_within(p, q, 4 * ulp(q, "float32") + 1e-6 * abs(q - start), "parameter")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moments_of_16_bits_are_worked_out_as_the_contract_says(
    dtype: torch.dtype, blocks: list[bool]
) -> None:
    bench = Bench(ADAMW[0], [TensorCase((3, 5), torch.float32, state_dtype=dtype)])
    bench.set_gradients()
    bench.optimizer.step()
    assert blocks == []


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1e30}], ids=["bucket", "block"])
@pytest.mark.parametrize("size", [1, 19, 64, 100_003])
def test_the_maximum_keeps_a_nan(size: int, options: dict[str, float]) -> None:
    """In a vector register of the operator's as in what remains at the end."""
    p = torch.nn.Parameter(torch.ones(size))
    optimizer = torch_compat.AdamW([p], amsgrad=True, **options)
    for bad in (1.0, torch.nan):
        p.grad = torch.ones(size)
        p.grad[0] = p.grad[size // 2] = p.grad[-1] = bad
        optimizer.step()
    maximum = optimizer.state[p]["max_exp_avg_sq"]
    assert maximum[[0, size // 2, -1]].isnan().all()
    assert options or maximum.isnan().sum() == min(size, 3)


@pytest.mark.parametrize("which", ["parameter", "gradient"])
def test_strided_tensors_do_not_take_it(which: str, calls: list[int]) -> None:
    p, grad = torch.ones(3, 4), torch.ones(3, 4)
    if which == "parameter":
        p = torch.ones(4, 3).t()
    else:
        grad = torch.ones(4, 3).t()
    param = torch.nn.Parameter(p)
    param.grad = grad
    fused_optim.AdamW([param]).step()
    assert calls == []


def test_clip_value_and_grad_scale_do_not_take_it(calls: list[int]) -> None:
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    fused_optim.AdamWeightDecay([p], clipvalue=0.5).step()
    optimizer = fused_optim.AdamW([p])
    optimizer.grad_scale = torch.tensor(2.0)
    optimizer.step()
    assert calls == []


def test_groups_share_a_bucket_and_keep_their_options(calls: list[int]) -> None:
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(params, (0.1, 0.2, 0.3), strict=True)]
    optimizer = torch_compat.AdamW(groups, weight_decay=0.0, backend="eager")
    for p in params:
        p.grad = torch.ones(3)
    optimizer.step()
    assert calls == [3]
    assert [round(p[0].item(), 4) for p in params] == [0.9, 0.8, 0.7]


FIRST_OF_EACH = [
    next(case for case in ADAMW if case.optimizer is optimizer)
    for optimizer in {case.optimizer: None for case in ADAMW}
]


@pytest.mark.parametrize("case", FIRST_OF_EACH, ids=str)
def test_zero_learning_rate_moves_nothing(case: Case) -> None:
    """With momentum of both signs, and zeros of both signs."""
    rate = "learning_rate" if case.optimizer is fused_optim.AdamWeightDecay else "lr"
    p = torch.nn.Parameter(torch.tensor([0.0, -0.0, 1.0, -1.0] * 2))
    optimizer = case.make([p], **{rate: 0.0})
    start = p.detach().clone()
    p.grad = torch.tensor([1.0] * 4 + [-1.0] * 4)
    optimizer.step()
    assert_same_bits(p, start)


def test_another_schema_turns_it_off(monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    monkeypatch.setattr(torch_fused, "_SCHEMA", (*torch_fused._SCHEMA, "more"))
    check_turned_off(calls)


def test_an_operator_that_fails_turns_it_off(
    monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("not for this device")

    monkeypatch.setattr(torch_fused, "_run", fails)
    check_turned_off(calls)


def check_turned_off(calls: list[int]) -> None:
    torch_fused.available.cache_clear()
    try:
        assert not torch_fused.available()
        bench = Bench(ADAMW[0], FLOAT32)
        bench.randomise(2)
        bench.step_and_check(2, bench.set_gradients())
        assert calls == []
    finally:
        torch_fused.available.cache_clear()
