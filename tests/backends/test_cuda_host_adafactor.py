"""The CUDA Adafactor kernels, run on the CPU through `step`, against the float64 oracle."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import host_module
import pytest
import torch
from cases import ADAFACTOR, DTYPE_MODES, Case, TensorCase, tensor_cases
from parity import Bench
from stored import bits

from fused_optim.backends import compiled, cuts, dispatch
from fused_optim.backends.interface import Bucket, BucketKey, Launch, Shape, TensorEntry
from fused_optim.ops import AdafactorRow, AdamWRow
from fused_optim.plan.tables import Plan
from fused_optim.plan.work import Work

CASES = [ADAFACTOR[i] for i in (0, 3, 8, 11, 19, 25, 30, 34)]
TALL, WIDE, MANY = (70_000, 3), (3, 20_000), (70, 5, 60)
SHORT = ((16, 5000), (40, 3000), (100, 2048), (1, 3, 600))  # warps side by side: 8, 4, 2, 2
PACKED = ((40, 16, 16), (30, 65, 1), (3, 4, 1000), (70, 5, 24), (2, 300, 3), (9, 40, 3))
TINY = ((300, 3, 3), (70, 1, 1), (9, 8, 8), (2000, 7, 5), (5, 1, 9), (3, 4))


@pytest.fixture(autouse=True)
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sends CPU tensors to the CUDA kernels; returns their extension, its counters at zero."""
    cuda, load = host_module.backend(), dispatch.load
    monkeypatch.setenv(dispatch.TEST_VARIABLE, "cuda")
    monkeypatch.setattr(dispatch, "load", lambda name: cuda if name == "cuda" else load(name))
    cuda._C.set_thread_order(0)
    cuda._C.take_counters()
    return cuda._C


@pytest.fixture(params=["visited", "staged"])
def route(request: pytest.FixtureRequest, on_the_host: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether one block does a small tensor's whole step, or all tensors take all launches."""
    if request.param == "staged":
        monkeypatch.setattr(on_the_host, "adafactor_visited", lambda *shape: False)
    return request.param


@pytest.mark.parametrize(("turn", "case"), list(enumerate(CASES)), ids=str)
def test_one_step_is_the_oracles(on_the_host: Any, turn: int, case: Case, route: str) -> None:
    tensors = [t for t in tensor_cases(3 * turn) if t.dtype is not torch.float64]
    bench = Bench(case, tensors, "cuda", seed=turn)
    bench.randomise(1 + 4 * turn)
    bench.step_and_check(1 + 4 * turn, bench.set_gradients())
    launches = {"visited": 1, "staged": 5}[route] * (len(DTYPE_MODES) - 1)
    assert on_the_host.take_counters()["launches"] == launches


def test_shapes_of_several_tiles(route: str) -> None:
    shapes = (TALL, WIDE, MANY, (300, 700), (2, 9000, 2), (150_001,), (1, 70_000), *SHORT)
    shapes = (*shapes, *PACKED, *TINY)
    for dtype, mode in ((torch.float32, "none"), (torch.bfloat16, "split")):
        bench = Bench(ADAFACTOR[3], [TensorCase(shape, dtype, mode) for shape in shapes], "cuda")
        bench.randomise(5)
        bench.step_and_check(5, bench.set_gradients(-2, 0))


def test_packed_matrices_are_clipped() -> None:
    results = []
    for norm in (0.5, None):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in PACKED]
        optimizer = ADAFACTOR[3].make(params, "cuda", max_grad_norm=norm)
        for p in params:
            p.grad = torch.randn_like(p)
        if norm is None:
            torch.nn.utils.clip_grad_norm_(params, 0.5)
        optimizer.step()
        state = [t for p in params for t in optimizer.state[p].values() if torch.is_tensor(t)]
        results.append([p.detach() for p in params] + state)
    for clipped, expected in zip(*results, strict=True):
        torch.testing.assert_close(clipped, expected, rtol=1e-5, atol=1e-9)


def test_tiles_of_four_chains() -> None:
    """Of 2^22 elements and more: columns are added up chain by chain, and rows tile by tile."""
    shape = (2048, 2048)
    param, grad = torch.zeros(shape).bfloat16(), torch.randn(shape).bfloat16()
    entry = TensorEntry(param, grad, exp_avg_sq=torch.zeros(2048))
    entry.max_exp_avg_sq = torch.zeros(2048)
    key = BucketKey("adafactor", torch.device("cpu"), torch.bfloat16, "nearest", False, False)
    bucket = Bucket(
        key, entries=[entry], rows=[AdafactorRow(b2=0.0, omb2=1.0, eps_grad=0.0, flags=0)]
    )
    kernels, launch = host_module.kernels(), Launch()
    total = kernels.adafactor_statistics(bucket, launch)
    kernels.adafactor_finalise_(bucket, launch)
    squares = grad.double().square()
    for found, expected in (
        *((total[0], squares.sum()), (entry.exp_avg_sq, squares.mean(1))),
        (entry.max_exp_avg_sq, squares.mean(0)),
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("shape", [(3, 48), (70, 96), (9, 15), (520, 264)])
def test_column_factors_are_found_once(on_the_host: Any, shape: tuple[int, int]) -> None:
    """A square root and a division for each column, not for each column of every tile and pass."""
    entry = TensorEntry(torch.randn(shape), torch.randn(shape), exp_avg_sq=torch.rand(shape[0]))
    entry.max_exp_avg_sq = torch.rand(shape[1])
    key = BucketKey("adafactor", torch.device("cpu"), torch.float32, "none", False, False)
    bucket, launch = Bucket(key, entries=[entry], rows=[AdafactorRow(b2=0.5, omb2=0.5)]), Launch()
    cut, plan = 3, Plan(key, "cuda")
    with mock.patch.object(cuts, "chosen", lambda *asked: cut):
        plan.pack(bucket)
        work = Work(key, bucket, plan)
        for op in ("adafactor_statistics", "adafactor_finalise_"):
            with mock.patch.object(on_the_host, "adafactor_visited", lambda *shape: False):
                work.run(op, launch)
    first = on_the_host.adafactor_sums(1, *shape, cut)["cols"]
    found = plan.scratch_of(0)[0][first : first + shape[1]]
    torch.testing.assert_close(found, 1 / entry.max_exp_avg_sq.sqrt(), rtol=3e-7, atol=0.0)


def test_empty_gradients_have_sums_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tile is theirs, so no kernel writes them; and what memory held before is no sum."""
    cuda = host_module.kernels()
    monkeypatch.setattr(compiled, "new", lambda tables, numel: torch.full((numel,), math.nan))
    key = BucketKey("adafactor", torch.device("cpu"), torch.float32, "none", False, False)
    bucket = Bucket(key, rows=[AdafactorRow()])
    for shape in ((0,), (3, 4), (0, 4)):
        entry = TensorEntry(torch.ones(shape), torch.ones(shape))
        entry.exp_avg_sq = torch.ones(shape if len(shape) < 2 else shape[:-1])
        entry.max_exp_avg_sq = None if len(shape) < 2 else torch.ones(shape[-1:])
        bucket.entries.append(entry)
    assert cuda.adafactor_statistics(bucket, Launch()).tolist() == [0.0, 12.0, 0.0]


@pytest.mark.parametrize("mode", ["nearest", "stochastic", "kahan", "split", "master"])
def test_a_visit_gives_the_bits_of_the_stages(
    on_the_host: Any, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """With and without statistics wanted before: a norm that clips nothing multiplies by 1."""
    monkeypatch.setattr(cuts, "chosen", lambda *asked: 2)  # the same tiles
    shapes = (8, 4096), (4096, 8), (40, 50), (9, 700), (3000,), (64, 3, 3), (7, 1, 1), (2, 30, 24)
    results, launches = [], []
    for norm, visits in ((None, True), (1e9, True), (None, False)):
        if not visits:
            monkeypatch.setattr(on_the_host, "adafactor_visited", lambda *shape: False)
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape).bfloat16()) for shape in shapes]
        optimizer = ADAFACTOR[3].make(params, "cuda", max_grad_norm=norm, low_precision=mode)
        on_the_host.take_counters()
        for _ in range(2):
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
        launches.append(on_the_host.take_counters()["launches"])
        state = [t for p in params for t in optimizer.state[p].values() if torch.is_tensor(t)]
        results.append([p.detach().clone() for p in params] + state)
    assert launches == [2 * 1, 2 * 3, 2 * 5]
    for other in results[1:]:  # remainders are bits, and some are those of NaN
        assert all((bits(a) == bits(b)).all() for a, b in zip(results[0], other, strict=True))


def test_large_and_small_tensors_share_five_launches(on_the_host: Any) -> None:
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((300, 700), (30, 70), (5,))]
    optimizer = ADAFACTOR[3].make(params, "cuda")
    for p in params:
        p.grad = torch.randn_like(p)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert on_the_host.take_counters()["launches"] == 5
    assert not any(torch.equal(*pair) for pair in zip(before, params, strict=True))


@pytest.mark.parametrize("norm", [None, 1.0])
def test_a_step_loads_what_no_tensor_of_it_needs_yet(on_the_host: Any, norm: float | None) -> None:
    """A graph's capture may have larger tensors than the step before it, and can load no kernel."""
    param = torch.nn.Parameter(torch.ones(4, 5))
    optimizer = ADAFACTOR[3].make([param], "cuda", max_grad_norm=norm)
    param.grad = torch.randn_like(param)
    on_the_host.take_counters()
    optimizer.step()
    counted = on_the_host.take_counters()
    assert counted["launches"] == (1 if norm is None else 3)
    assert counted["kernels_loaded"] == 5


def test_found_inf_stops_a_visit(on_the_host: Any) -> None:
    param = torch.nn.Parameter(torch.ones(4, 5))
    optimizer = ADAFACTOR[3].make([param], "cuda")
    param.grad = torch.randn_like(param)
    optimizer.step()
    state = [param, *(t for t in optimizer.state[param].values() if torch.is_tensor(t))]
    before = [t.detach().clone() for t in state]
    (plan,) = optimizer._plans.values()
    settings = optimizer.settings(optimizer.param_groups[0])
    (key, _), row = next(iter(optimizer._plans)), optimizer._row(settings, 2, None)
    plan.set_rows([row])
    for found_inf, changes in ((1.0, False), (0.0, True)):
        launch = Launch(found_inf=torch.tensor(found_inf), sums_wanted=False)
        Work(key, None, plan).run("adafactor_finalise_", launch)
        same = all(torch.equal(*pair) for pair in zip(before, state, strict=True))
        assert same != changes


def test_shards_are_not_visited(on_the_host: Any) -> None:
    """Their sums are not complete before other processes have added theirs."""
    needs = host_module.backend().needs("adafactor_finalise_", Launch()).maps
    whole, shard = Shape(1, 3, 4), Shape(1, 3, 4, sharded=True)
    assert (needs["visits"](whole), needs["lines"](whole)) == (1, 0)
    assert needs["visits"](shard) == 0 and needs["lines"](shard) > 0


@pytest.mark.parametrize("shape", [(1, 16, 4096), (1, 4096, 16), (1, 8, 8192), (1, 1, 65_536)])
def test_low_rank_factors_are_visited(on_the_host: Any, shape: tuple[int, int, int]) -> None:
    assert on_the_host.adafactor_visited(*shape)
    assert not on_the_host.adafactor_visited(1, 1024, 1024)


def test_work_follows_elements_not_matrices(on_the_host: Any) -> None:
    """Convolutions are batches of tiny matrices: a tile holds thousands of them."""
    for shape in ((512 * 512, 3, 3), (2048 * 512, 1, 1), (64 * 3, 7, 7)):
        numel = shape[0] * shape[1] * shape[2]
        assert on_the_host.adafactor_tiles(*shape) <= numel // 65_536 + 1
        assert on_the_host.adafactor_lines(*shape) <= numel // 65_536 + 2
        assert on_the_host.adafactor_scratch(*shape) < 100
    for shape in ((768 * 3, 16, 16), (1280, 1280, 3)):  # ViT-B/16's patches, Whisper's conv2
        numel, cut = shape[0] * shape[1] * shape[2], 2
        items = on_the_host.adafactor_tiles(*shape, cut) + on_the_host.adafactor_lines(*shape, cut)
        assert items <= 2 * (numel // 65_536 + 1) + 1
        assert 4 * on_the_host.adafactor_scratch(*shape, cut) < 0.01 * 2 * numel
    # Few rows, and a block's warps lie side by side.
    assert on_the_host.adafactor_tiles(1, 16, 14_336) == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_tensors_equal_contiguous_ones(dtype: torch.dtype) -> None:
    """Bit for bit where sums have one order, and they do: it is that of logical indices."""
    results = []
    for strided in (False, True):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(40, 56).to(dtype)) for _ in range(3)]
        for p in params:
            p.grad = torch.randn(56, 40).t().to(dtype)
            if not strided:
                p.grad = p.grad.contiguous()
        if strided:
            params[1].data = params[1].data.t().contiguous().t()
        case = ADAFACTOR[3]
        optimizer = case.make(params, "cuda")
        optimizer.step()
        results.append([p.detach().clone() for p in params])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("norm", [1.0, None])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_thread_order_changes_no_bit(on_the_host: Any, seed: int, norm: float | None) -> None:
    """A missing barrier would, see test_cuda_sanitizers.py. Without a norm, visits do all."""
    results = []
    for order in (0, seed):
        on_the_host.set_thread_order(order)
        torch.manual_seed(0)
        shapes = (300, 40), (9, 700), (3, 50, 8), (3000,)
        params = [torch.nn.Parameter(torch.randn(shape).bfloat16()) for shape in shapes]
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer = ADAFACTOR[3].make(params, "cuda", max_grad_norm=norm)
        optimizer.step()
        optimizer.step()
        results.append([p.detach().clone() for p in params])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("op", ["adamw", "adafactor"])
def test_grad_square_sums(op: str) -> None:
    """Two launches; the row's second word is a clamp for AdamW alone."""
    key = BucketKey(op, torch.device("cpu"), torch.float32, "none", False, False)
    row = AdamWRow(clip_value=0.5) if op == "adamw" else AdafactorRow(grad_mul=-1.0)
    bucket = Bucket(key, rows=[row])
    for shape in ((0,), (5,), (3, 8192 + 24), (100_000,)):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            grad = torch.randn(shape).to(dtype)
            bucket.entries.append(TensorEntry(torch.zeros(shape), grad))
    scale = torch.tensor(0.25)
    actual = host_module.kernels().grad_square_sums(bucket, Launch(grad_scale=scale))
    limit = 0.5 if op == "adamw" else torch.inf
    grads = [(entry.grad.double() * 4).clamp(-limit, limit) for entry in bucket.entries]
    expected = torch.stack([g.square().sum() for g in grads])
    torch.testing.assert_close(actual.double(), expected, rtol=4e-7, atol=0)


@pytest.mark.parametrize(
    ("mode", "scale_parameter", "bytes_per_parameter"),
    [("stochastic", False, 10), ("stochastic", True, 12)]
    + [("split", False, 14), ("split", True, 18)],
)
def test_traffic(
    on_the_host: Any,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    scale_parameter: bool,
    bytes_per_parameter: int,
) -> None:
    """Three passes over the gradients, one or two over the parameters; the rest is below 5 %."""
    monkeypatch.setattr(on_the_host, "adafactor_blocks", lambda device: 4)  # and large tiles
    options = {"lr": 0.01, "relative_step": False, "scale_parameter": scale_parameter}
    param = torch.nn.Parameter(torch.randn(1024, 1024).bfloat16())
    case = Case(ADAFACTOR[0].optimizer, ADAFACTOR[0].oracle, options)
    optimizer = case.make([param], "cuda", low_precision=mode)
    param.grad = torch.randn_like(param)
    optimizer.step()
    on_the_host.take_counters()
    optimizer.step()
    counted = on_the_host.take_counters()
    assert counted["launches"] == 5
    traffic = (counted["bytes_loaded"] + counted["bytes_stored"]) / param.numel()
    assert bytes_per_parameter <= traffic < 1.05 * bytes_per_parameter


def test_scratch_is_a_small_share(on_the_host: Any) -> None:
    for shape in ((1, 8192, 8192), (1, 128_256, 4096), (8, 4096, 14_336)):
        numel = shape[0] * shape[1] * shape[2]
        assert 4 * on_the_host.adafactor_scratch(*shape) < 0.01 * 2 * numel
