"""Steps over tensors of more than 2^31 elements, on a GPU; the same checks, scaled down, elsewhere.

AdamW's elements know nothing of each other, so the first, the last and those around 2^31 are held
to a small tensor of the same values. Adafactor is given gradients of rank one, whose factored
estimate is exact: its first update is the sign of the gradient, and every element is checked.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import fused_optim
from fused_optim.backends import dispatch

DEVICE = "cuda"
HALF = 2**31
NUMEL = HALF + 3 * 8192 + 13
ROWS, COLS = 2**16 + 1, 2**15
WINDOW = 40_000
BLOCK = 2**27  # elements that a check looks at together


def windows() -> list[slice]:
    """Return the elements that are looked at: the first, those around 2^31, the last."""
    return [slice(start, start + WINDOW) for start in (0, HALF - WINDOW // 2, NUMEL - WINDOW)]


def blocks(numel: int) -> Iterator[slice]:
    """Return a tensor's elements in pieces."""
    return (slice(start, min(start + BLOCK, numel)) for start in range(0, numel, BLOCK))


def filled(dtype: torch.dtype, scale: float, seed: int) -> torch.Tensor:
    """Return random values, made without a temporary of the tensor's size."""
    source = torch.Generator(DEVICE).manual_seed(seed)
    made = torch.empty(NUMEL, dtype=dtype, device=DEVICE)
    for block in blocks(NUMEL):
        count = block.stop - block.start
        made[block] = (torch.randn(count, generator=source, device=DEVICE) * scale).to(dtype)
    return made


def adamw(backend: str, dtype: torch.dtype, **options: Any) -> None:
    """Take two steps and compare windows with small tensors, bit for bit."""
    p = torch.nn.Parameter(filled(dtype, 0.02, seed=0))
    p.grad = filled(dtype, 1e-3, seed=1)
    small = [torch.nn.Parameter(p.detach()[w].clone()) for w in windows()]
    for q, window in zip(small, windows(), strict=True):
        q.grad = p.grad[window].clone()
    for params in ([p], small):
        optimizer = fused_optim.AdamW(params, weight_decay=0.1, backend=backend, **options)
        optimizer.step()
        optimizer.step()
        del optimizer
    for q, window in zip(small, windows(), strict=True):
        here = f"elements {window.start} to {window.stop}"
        assert not torch.equal(q, q.grad), here
        torch.testing.assert_close(p[window], q, rtol=0, atol=0, msg=lambda m, w=here: f"{w}: {m}")


def adafactor(backend: str, low_precision: str) -> None:
    """Take the first step on gradients of rank one and compare every element."""
    lr = 2.0**-6
    a = torch.ones(ROWS, device=DEVICE)
    a[::3], a[1::5] = -2.0, 0.5
    b = torch.ones(COLS, device=DEVICE)
    b[::7], b[::2] = 4.0, -1.0
    p = torch.nn.Parameter(torch.ones(ROWS, COLS, dtype=torch.bfloat16, device=DEVICE))
    p.grad = torch.outer(a.bfloat16(), b.bfloat16())
    options = {"lr": lr, "relative_step": False, "scale_parameter": False}
    optimizer = fused_optim.Adafactor(
        [p], eps=(0.0, 1e-3), low_precision=low_precision, backend=backend, **options
    )
    optimizer.step()
    state = optimizer.state[p]
    expected_rows, expected_cols = a.square() * b.square().mean(), b.square() * a.square().mean()
    torch.testing.assert_close(state["exp_avg_sq_row"], expected_rows, rtol=1e-5, atol=0)
    torch.testing.assert_close(state["exp_avg_sq_col"], expected_cols, rtol=1e-5, atol=0)
    step = max(1, BLOCK // COLS)
    for start in range(0, ROWS, step):
        sign = torch.outer(a[start : start + step].sign(), b.sign())
        shown = p.detach()[start : start + step].float()
        # Half a unit of bfloat16 for the rounding, half a one for the sums.
        wrong = (shown - (1 - lr * sign)).abs() > 2.0**-7
        assert not wrong.any(), f"rows from {start} on: {int(wrong.sum())} elements are wrong"


SPLIT, STOCHASTIC = {"low_precision": "split"}, {"low_precision": "stochastic"}
CASES = {
    "AdamW fp32": (16 * NUMEL, adamw, {"dtype": torch.float32}),
    "AdamW bf16 split": (14 * NUMEL, adamw, {"dtype": torch.bfloat16, **SPLIT}),
    "Adafactor bf16 split": (6 * ROWS * COLS, adafactor, SPLIT),
    "Adafactor bf16 stochastic": (4 * ROWS * COLS, adafactor, STOCHASTIC),
}
"""What is stepped, with the bytes it takes at least."""


@pytest.mark.gpu
@pytest.mark.long
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize(("needs", "check", "options"), CASES.values(), ids=CASES)
def test_beyond_32_bits(
    needs: int, check: Callable[..., None], options: dict[str, Any], backend: str
) -> None:
    op = "adamw_" if check is adamw else "adafactor_apply_"
    if reason := dispatch.why_not(backend, op, torch.device("cuda")):
        pytest.skip(reason)
    gc.collect()
    torch.cuda.empty_cache()
    free, needs = torch.cuda.mem_get_info()[0] / 2**30, needs / 2**30 + 3
    if free < needs:
        pytest.skip(f"takes {needs:.0f} GiB, and {free:.0f} are free")
    try:
        check(backend, **options)
    except AssertionError as error:  # the traceback of which would keep the tensors alive
        pytest.fail(str(error), pytrace=False)


# --- scaled down ----------------------------------------------------------------------------------


@pytest.fixture
def scaled_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same checks on tensors that fit a CPU, with the boundary at 2^17 elements."""
    smaller = {"DEVICE": "cpu", "HALF": 2**17, "NUMEL": 2**17 + 3 * 8192 + 13, "BLOCK": 9000}
    for name, value in {**smaller, "ROWS": 129, "COLS": 256, "WINDOW": 8000}.items():
        monkeypatch.setattr(sys.modules[__name__], name, value)


def test_large_tensors_pass_where_all_is_well(scaled_down: None) -> None:
    adamw("eager", torch.float32)
    adamw("eager", torch.bfloat16, low_precision="split")
    for mode in ("split", "stochastic"):
        adafactor("eager", mode)


@pytest.mark.parametrize("where", ["before", "after", "last"])
def test_an_offset_that_wraps_is_seen(scaled_down: None, monkeypatch, where: str) -> None:
    half, end = HALF, NUMEL
    element = {"before": half - 1, "after": half, "last": end - 1}[where]

    class Wraps(fused_optim.AdamW):
        def step(self, *arguments):
            super().step(*arguments)
            p = self.param_groups[0]["params"][0]
            if p.numel() == end:
                p.data[element] += 1e-3

    monkeypatch.setattr(fused_optim, "AdamW", Wraps)
    with pytest.raises(AssertionError, match="elements .*Mismatched elements: 1"):
        try:
            adamw("eager", torch.float32)
        except AssertionError as error:
            raise AssertionError(" ".join(str(error).split())) from None


def test_one_wrong_row_of_adafactor_is_seen(scaled_down: None, monkeypatch) -> None:
    class Skips(fused_optim.Adafactor):
        def step(self, *arguments):
            super().step(*arguments)
            self.param_groups[0]["params"][0].data[100] = 1.0

    monkeypatch.setattr(fused_optim, "Adafactor", Skips)
    with pytest.raises(AssertionError, match="256 elements are wrong"):
        adafactor("eager", "split")


def test_the_cases_are_beyond_32_bits() -> None:
    assert NUMEL > 2**31 and ROWS * COLS > 2**31
    assert all(0 <= w.start and w.stop <= NUMEL for w in windows())
    assert windows()[1].start < 2**31 < windows()[1].stop
