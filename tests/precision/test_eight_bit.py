"""Moments in 8 bits: their code, and what trains, resumes, loads and is refused with them."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import eight_bit_page
import moment_codes
import pytest
import torch
import written_pages
from optimizer_table import assert_identical, snapshot

import fused_optim
from fused_optim import torch_compat
from fused_optim.precision import eight_bit, encoding, modes

SCALES = (1e-38, 1e-30, 1e-20, 1.0, 1e20)
OCTAVES = (0.0, 2.0, 12.0, 60.0)


def draws(values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 65536, values.shape, generator=generator, dtype=torch.int32)


def seconds(scale: float, octaves: float, blocks: int = 20) -> torch.Tensor:
    """Return second moments whose sizes spread over some octaves, every seventh of them zero."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(blocks, 256, generator=generator).square()
    spread = torch.randn(blocks, 256, generator=generator) * octaves / 4
    values = (values * torch.exp2(spread) * scale).clamp(max=1e37)
    values[:, ::7] = 0.0
    return values


@pytest.mark.parametrize("octaves", OCTAVES)
@pytest.mark.parametrize("scale", SCALES)
class TestTheCode:
    def test_what_is_coded_again_stays_what_it_is(self, scale: float, octaves: float) -> None:
        v = seconds(scale, octaves)
        m = torch.randn(v.shape, generator=torch.Generator().manual_seed(2)) * v.sqrt()
        records = eight_bit.encode_second(v, draws(v))
        kept = eight_bit.decode_second(records)
        firsts = eight_bit.encode_first(m, kept, draws(v, 1))
        assert torch.equal(
            eight_bit.decode_second(eight_bit.encode_second(kept, draws(v, 2))), kept
        )
        values = eight_bit.decode_first(firsts, kept)
        assert torch.equal(eight_bit.encode_first(values, kept, draws(v, 3)), firsts)

    def test_zero_is_exact_and_nothing_else_becomes_zero(
        self, scale: float, octaves: float
    ) -> None:
        v = seconds(scale, octaves)
        kept = eight_bit.decode_second(eight_bit.encode_second(v, draws(v)))
        assert torch.equal(kept == 0.0, v == 0.0)

    def test_it_is_monotone(self, scale: float, octaves: float) -> None:
        v = seconds(scale, octaves).sort(1).values
        same = draws(v[:, :1]).expand_as(v)  # the same bits for all elements of a block
        kept = eight_bit.decode_second(eight_bit.encode_second(v, same))
        assert (kept.diff(dim=1) >= 0.0).all()
        roots = v.sqrt()[:, ::2]
        m = torch.cat([-roots.flip(1), roots], 1)
        values = eight_bit.decode_first(eight_bit.encode_first(m, None, same), None)
        assert (values[:, 128:].diff(dim=1) >= 0.0).all()
        assert (values[:, :128].diff(dim=1) >= 0.0).all()


def test_values_within_a_blocks_reach_are_a_step_off_at_most() -> None:
    """By what the block spans: 254 codes of 2^shift, of which 2^23 make an octave."""
    for octaves, shift in ((1.9, 16), (3.9, 17), (7.9, 18), (15.8, 19), (31.7, 20)):
        v = torch.exp2(torch.rand(50, 256) * octaves)
        v[:, 0], v[:, 1] = 1.0, 2.0**octaves
        kept = eight_bit.decode_second(eight_bit.encode_second(v, draws(v)))
        off = (kept.view(torch.int32) - v.view(torch.int32)).abs().max()
        assert 0.9 * 2**shift < off <= 2**shift + 256


def test_a_value_out_of_reach_becomes_the_least() -> None:
    v = torch.ones(1, 256)
    v[0, 0] = 2.0**-100
    kept = eight_bit.decode_second(eight_bit.encode_second(v, draws(v)))
    assert kept[0, 0] == 2.0**-31.75 or 2.0**-32 <= kept[0, 0] <= 2.0**-31
    assert (kept[0, 1:] == 1.0).all()


def test_rounding_keeps_the_mean() -> None:
    v = torch.exp2(torch.linspace(0.0, 10.0, 256)).view(1, 256).expand(20000, 256)
    kept = eight_bit.decode_second(eight_bit.encode_second(v, draws(v))).double()
    # A code's step is 2^18 of 2^23 here, 3 %, and means of 20,000 are known 100 times better.
    assert ((kept.mean(0) / v[0].double()) - 1).abs().max() < 1e-3
    m = torch.linspace(-3.0, 3.0, 256).view(1, 256).expand(20000, 256)
    values = eight_bit.decode_first(eight_bit.encode_first(m, v, draws(m)), v).double()
    step = 3.0 / 127 * 32  # of the largest units, in which the smallest moments are the coarsest
    assert (values.mean(0) - m[0].double()).abs().max() < step / 2**9 + step / 50


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_spoils_its_block_alone(bad: float) -> None:
    v = seconds(1.0, 2.0, 3)
    v[1, 5] = bad
    kept = eight_bit.decode_second(eight_bit.encode_second(v, draws(v)))
    assert kept[1].isnan().all() and kept[[0, 2]].isfinite().all()
    values = eight_bit.decode_first(eight_bit.encode_first(v, None, draws(v)), None)
    assert values[1].isnan().all() and values[[0, 2]].isfinite().all()


# --- updates --------------------------------------------------------------------------------------


def test_the_page_is_what_was_measured() -> None:
    page = eight_bit_page.PAGE.read_text()
    assert written_pages.filled(page, eight_bit_page.TABLES) == page
    found = json.loads(eight_bit_page.CODE_RESULTS.read_text())["codes"]
    assert found.keys() == moment_codes.CODES.keys()
    assert max(found["ours"].values()) < 0.12
    for name, errors in found.items():
        if name not in ("ours", "bfloat16, stochastic"):
            assert max(errors.values()) > 2 * max(found["ours"].values()), name


def test_the_page_shows_the_picture_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means over seeds, less float32's, whose runs are a band; and every run has an end."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(eight_bit_page.DEMO)
    from precision_plot import picture

    place = eight_bit_page.IMAGE.relative_to(eight_bit_page.PAGE.parent)
    assert f"]({place})" in eight_bit_page.PAGE.read_text()
    assert eight_bit_page.IMAGE.read_bytes().startswith(b"\x89PNG")
    assert 10_000 < eight_bit_page.IMAGE.stat().st_size < 150_000
    results = json.loads(eight_bit_page.CURVES.read_text())
    means: dict[str, list[float]] = {}
    for run in results["runs"]:
        means.setdefault(run["name"], []).append(run["final_loss"])
    exact = means.pop("AdamW float32")
    differences, ends = picture(results).axes
    assert [line.get_ydata()[-1] for line in differences.lines] == pytest.approx(
        [fmean(losses) - fmean(exact) for losses in means.values()]
    )
    assert not any(line.is_dashed() for line in differences.lines)
    (band,) = differences.collections
    last = [y for x, y in band.get_paths()[0].vertices if x == results["settings"]["steps"]]
    span = [edge(exact) - fmean(exact) for edge in (min, max)]
    assert [min(last), max(last)] == pytest.approx(span)
    shown = sorted(line.get_xdata()[0] for line in ends.lines)
    assert shown == sorted(run["final_loss"] for run in results["runs"])


@pytest.mark.parametrize("scale", [1e-18, 1e-10, 1.0, 1e10])
def test_updates_do_not_depend_on_the_scale_of_gradients(scale: float) -> None:
    """float32's squares of gradients of 1e-20 have a few bits left, and ours those."""
    torch.manual_seed(0)
    grads = [scale * torch.randn(16 * 256) for _ in range(60)]
    assert moment_codes.error(grads, moment_codes.ours) < 0.03


def minimised(code: moment_codes.Code | None, curvature: torch.Tensor, rows: bool) -> float:
    """Return how far AdamW gets down a parabola in 2,000 steps of a falling rate."""
    torch.manual_seed(0)
    x = torch.randn(curvature.shape)
    first = (curvature * x.square()).sum().item()
    m, v, source = torch.zeros_like(x), torch.zeros_like(x), torch.Generator().manual_seed(1)
    for step in range(1, 2001):
        g = curvature * x
        if rows:  # an embedding, of which few rows are looked up
            g = (g.view(-1, 256) * (torch.rand(len(x) // 256, 1) < 0.05)).reshape(-1)
        m, v = m + 0.1 * (g - m), 0.999 * v + 0.001 * g * g
        root = (v / (1 - 0.999**step)).sqrt()
        x = x - 0.01 * (1 - step / 2000) * m / (1 - 0.9**step) / (root + 1e-8)
        if code is not None:
            m, v = code(m, v, source)
    return (curvature * x.square()).sum().item() / first


@pytest.mark.parametrize("rows", [False, True], ids=["long", "sparse"])
def test_problems_on_which_a_linear_code_fails(rows: bool) -> None:
    curvature = torch.logspace(-3, 3, 16 * 256)[torch.randperm(16 * 256)]
    exact = minimised(None, curvature, rows)
    assert minimised(moment_codes.ours, curvature, rows) < 1.2 * exact + 1e-4
    naive = minimised(moment_codes.CODES["linear, nearest"], curvature, rows)
    assert not naive < 1.0  # it went up, or nowhere that is a number


# --- optimizers -----------------------------------------------------------------------------------

Make = Callable[..., torch.optim.Optimizer]
MAKES: dict[str, Make] = {
    "AdamW": functools.partial(fused_optim.AdamW, lr=2e-3),
    "AdamWeightDecay": functools.partial(fused_optim.AdamWeightDecay, learning_rate=2e-3),
    "torch_compat.AdamW": functools.partial(torch_compat.AdamW, lr=2e-3, amsgrad=True),
    "Adafactor": functools.partial(fused_optim.Adafactor, beta1=0.9),
    "torch_compat.Adafactor": torch_compat.Adafactor,
}
every_make = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def network(dtype: torch.dtype) -> torch.nn.Sequential:
    """Return a model with matrices of whole blocks, a long vector, and small tensors."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(256, 96), torch.nn.Tanh(), torch.nn.Linear(96, 512, bias=False)]
    model = torch.nn.Sequential(*layers, torch.nn.LayerNorm(512), torch.nn.Linear(512, 10)).to(
        dtype
    )
    model.register_parameter("long", torch.nn.Parameter(torch.ones(5000, dtype=dtype)))
    return model


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> float:
    for step in steps:
        x = torch.randn(16, 256, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        dtype = model.long.dtype
        loss = (model(x.to(dtype)).float() - x[:, :10]).square().mean()
        loss = loss + (model.long.float() - torch.linspace(0, 1, 5000)).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def packed(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [v for s in optimizer.state.values() for v in s.values() if modes.is_packed(v)]


@every_make
@both_dtypes
def test_it_trains_as_float32_moments_do(make: Make, dtype: torch.dtype) -> None:
    losses = {}
    for state_dtype in (torch.float32, "int8"):
        model = network(dtype)
        optimizer = make(model.parameters(), state_dtype=state_dtype)
        before = train(model, optimizer, range(1))
        losses[state_dtype] = train(model, optimizer, range(1, 150))
        assert bool(packed(optimizer)) == (state_dtype == "int8")
    assert losses["int8"] < 0.8 * before
    assert math.isclose(losses["int8"], losses[torch.float32], rel_tol=0.03)


@every_make
@both_dtypes
def test_it_resumes_to_the_bit(make: Make, dtype: torch.dtype) -> None:
    """From its own dict, and from one that a float32 optimizer loaded and saved again."""
    model = network(dtype)
    optimizer = make(model.parameters(), state_dtype="int8")
    train(model, optimizer, range(20))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    def resumed(state_dtype: Any, state_dict: dict[str, Any]) -> tuple[Any, Any]:
        again = network(dtype)
        again.load_state_dict(saved[0])
        loaded = make(again.parameters(), state_dtype=state_dtype)
        loaded.load_state_dict(copy.deepcopy(state_dict))
        return again, loaded

    _, floats = resumed(torch.float32, saved[1])
    assert not packed(floats)
    runs = [(model, optimizer), resumed("int8", saved[1]), resumed("int8", floats.state_dict())]
    for run in runs:
        train(*run, range(20, 25))
    for _, other in runs[1:]:
        assert_identical(snapshot(other), snapshot(optimizer))


@every_make
def test_the_option_may_change_while_it_trains(make: Make) -> None:
    model = network(torch.float32)
    optimizer = make(model.parameters())
    train(model, optimizer, range(10))
    for state_dtype, holds in (("int8", True), (torch.float32, False), ("int8", True)):
        for group in optimizer.param_groups:
            group["state_dtype"] = state_dtype
        loss = train(model, optimizer, range(10, 12))
        assert math.isfinite(loss) and bool(packed(optimizer)) == holds


def test_which_parameters_have_it() -> None:
    long, small = torch.nn.Parameter(torch.ones(4096)), torch.nn.Parameter(torch.ones(4095))
    matrix = torch.nn.Parameter(torch.ones(64, 64))
    across = torch.nn.Parameter(torch.ones(64, 256).t())
    wide = torch.nn.Parameter(torch.ones(16, 256))
    double = torch.nn.Parameter(torch.ones(4096, dtype=torch.float64))
    params = [long, small, matrix, across, wide, double]
    optimizer = fused_optim.AdamW(params, state_dtype="int8")
    optimizer.init_state()
    dtypes = [optimizer.state[p]["exp_avg_sq"].dtype for p in params]
    eight, full = torch.uint8, torch.float32
    assert dtypes == [eight, full, eight, full, eight, torch.float64]
    shapes = [tuple(optimizer.state[p]["exp_avg"].shape) for p in (long, matrix, wide)]
    assert shapes == [(16 * 260,), (16 * 260,), (16, 260)]


def test_both_moments_take_two_bytes_and_a_32nd() -> None:
    param = torch.nn.Parameter(torch.ones(1024, 1024, dtype=torch.bfloat16))
    optimizer = fused_optim.AdamW([param], state_dtype="int8", low_precision="stochastic")
    optimizer.init_state()
    stored = sum(v.nbytes for v in optimizer.state[param].values() if isinstance(v, torch.Tensor))
    assert stored / param.numel() == 2 + 2 * 4 / 256


@every_make
def test_a_gradient_that_is_not_finite_spoils_one_block(make: Make) -> None:
    model = network(torch.float32)
    optimizer = make([model[2].weight, model.long], state_dtype="int8", backend="eager")
    for step in range(3):
        for param in (model[2].weight, model.long):
            param.grad = torch.full_like(param, 0.5)
        if step == 0:
            model.long.grad[300] = math.nan
        optimizer.step()
    if isinstance(optimizer, fused_optim.Adafactor):  # which clips by the root mean square
        assert model.long.isnan().all()
    else:
        assert model.long[256:512].isnan().all()
        assert model.long[:256].isfinite().all() and model.long[512:].isfinite().all()
    assert model[2].weight.isfinite().all()


def test_check_numerics_reads_it() -> None:
    fresh = network(torch.float32)
    unborn = fused_optim.AdamW(fresh.parameters(), state_dtype="int8")
    for param in fresh.parameters():
        param.grad = torch.ones_like(param)
    assert not [one for one in unborn.check_numerics() if one.kind == "overflow"]
    assert not unborn.state

    model = network(torch.float32)
    optimizer = fused_optim.AdamW(model.parameters(), state_dtype="int8")
    for _ in range(2):
        train(model, optimizer, range(2))
        before = copy.deepcopy(snapshot(optimizer))
        assert not [one for one in optimizer.check_numerics() if one.kind == "overflow"]
        assert_identical(snapshot(optimizer), before)


def test_lion_and_unknown_names_refuse_it() -> None:
    params = [torch.nn.Parameter(torch.ones(4096))]
    with pytest.raises(ValueError, match="Invalid state_dtype: 'int8' - Lion goes by the sign"):
        fused_optim.Lion(params, state_dtype="int8")
    with pytest.raises(ValueError, match="Invalid state_dtype: 'int4' - should be"):
        fused_optim.AdamW(params, state_dtype="int4")


def test_records_of_another_shape_are_refused() -> None:
    param = torch.nn.Parameter(torch.ones(16, 256))
    optimizer = fused_optim.AdamW([param], state_dtype="int8")
    param.grad = torch.ones_like(param)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["exp_avg"] = saved["state"][0]["exp_avg"][:8]
    with pytest.raises(ValueError, match=r"'exp_avg' is in 8 bits and has shape \(8, 260\)"):
        optimizer.load_state_dict(saved)


def test_statistics_are_not_taken_for_records() -> None:
    """Adafactor's row and column means have no form in 8 bits."""
    param = torch.nn.Parameter(torch.ones(64, 256))
    optimizer = fused_optim.Adafactor([param], state_dtype="int8")
    param.grad = torch.ones_like(param)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["exp_avg_sq_row"] = torch.ones(64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"'exp_avg_sq_row' is torch\.uint8"):
        optimizer.load_state_dict(saved)
    before = param.detach().clone()
    optimizer.state[param]["exp_avg_sq_row"] = torch.ones(64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"'exp_avg_sq_row' is torch\.uint8"):
        optimizer.step()
    assert torch.equal(param, before)


def stepped(
    backend: str, steps: int = 3, *, transposed: bool = False, mode: str = "split", **options: Any
) -> tuple[torch.nn.Parameter, Any]:
    """Return a bfloat16 matrix after some steps, each from a dict that was saved and loaded."""
    generator = torch.Generator().manual_seed(3)
    param = torch.nn.Parameter(torch.randn(64, 256, generator=generator).bfloat16())
    found = None
    for _ in range(steps):
        optimizer = fused_optim.AdamW(
            [param], state_dtype="int8", low_precision=mode, backend=backend, **options
        )
        if found is not None:
            if transposed:
                state = found["state"][0]
                for key in ("remainder", "exp_avg", "exp_avg_sq"):
                    state[key] = state[key].t().contiguous().t()
            optimizer.load_state_dict(found)
        param.grad = torch.randn(64, 256, generator=generator).bfloat16()
        optimizer.step()
        found = copy.deepcopy(optimizer.state_dict())
    return param, optimizer


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_a_loaded_state_may_lie_transposed(backend: str) -> None:
    plain, optimizer = stepped(backend)
    param, other = stepped(backend, transposed=True)
    assert torch.equal(param, plain)
    assert_identical(snapshot(other), snapshot(optimizer))


@pytest.mark.parametrize("mode", ["split", "stochastic"])
@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_a_capturable_step_has_the_same_bits(backend: str, mode: str) -> None:
    plain, optimizer = stepped(backend, mode=mode)
    param, other = stepped(backend, mode=mode, capturable=True)
    assert torch.equal(param, plain)
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(other.state[param][key], optimizer.state[plain][key])


@every_make
def test_scaled_and_overflowed_gradients(make: Make) -> None:
    """A power of two that is divided out changes no bit, and infinities nothing at all."""
    plain, scaled = network(torch.float32), network(torch.float32)
    runs = [(model, make(model.parameters(), state_dtype="int8")) for model in (plain, scaled)]
    for step in range(3):
        for model, optimizer in runs:
            generator = torch.Generator().manual_seed(step)
            factor = 1.0 if model is plain else 1024.0
            for param in model.parameters():
                param.grad = torch.randn(param.shape, generator=generator) * factor
            if model is scaled:
                optimizer.grad_scale = torch.tensor(factor)
                optimizer.found_inf = torch.tensor(0.0)
            optimizer.step()
    assert_identical(snapshot(runs[1][1]), snapshot(runs[0][1]))
    optimizer = runs[1][1]
    before = copy.deepcopy((snapshot(optimizer), scaled.state_dict()))
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    for name, value in scaled.state_dict().items():
        assert torch.equal(value, before[1][name])
    for param in scaled.parameters():
        state = optimizer.state[param]
        assert all(torch.isfinite(v).all() for v in state.values() if isinstance(v, torch.Tensor))


def test_eager_takes_large_tensors_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, optimizer = stepped("eager", mode="stochastic")
    monkeypatch.setitem(encoding._BLOCK, "cpu", 1024)
    param, other = stepped("eager", mode="stochastic")
    assert torch.equal(param, whole)
    assert_identical(snapshot(other), snapshot(optimizer))
