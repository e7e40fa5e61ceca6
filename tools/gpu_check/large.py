"""Steps over tensors of more than 2^31 elements, on a GPU: ``python -m tools.gpu_check.large``.

AdamW's elements know nothing of each other, so the first, the last and those around 2^31 are held
to a small tensor of the same values. Adafactor is given gradients of rank one, whose factored
estimate is exact: its first update is the sign of the gradient, and every element is checked.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fused_optim
from fused_optim import dispatch
from tools.gpu_check.record import Tally

DEVICE = "cuda"
HALF = 2**31
NUMEL = HALF + 3 * 8192 + 13
ROWS, COLS = 2**16 + 1, 2**15
WINDOW = 40_000
BLOCK = 2**27  # elements that a check looks at together
GIB = 2.0**30


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


_SPLIT, _STOCHASTIC = {"low_precision": "split"}, {"low_precision": "stochastic"}
CASES = {
    "AdamW fp32": (4 * 4 * NUMEL, partial(adamw, dtype=torch.float32)),
    "AdamW bf16 split": (14 * NUMEL, partial(adamw, dtype=torch.bfloat16, **_SPLIT)),
    "Adafactor bf16 split": (6 * ROWS * COLS, partial(adafactor, **_SPLIT)),
    "Adafactor bf16 stochastic": (4 * ROWS * COLS, partial(adafactor, **_STOCHASTIC)),
}
"""What is stepped, with the bytes it takes at least."""


def run(name: str, backend: str) -> str | None:
    """Run a case; returns why it was not run, or None."""
    needs, case = CASES[name]
    op = "adamw_" if "AdamW" in name else "adafactor_apply_"
    if reason := dispatch.why_not(backend, op):
        return reason
    gc.collect()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0] / GIB
    if free < needs / GIB + 3:
        return f"takes {needs / GIB + 3:.0f} GiB, and {free:.0f} are free"
    case(backend)
    return None


def main() -> int:
    """Run every case on both kernel backends and return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    tally = Tally(parser.parse_args().json)
    for name, backend in itertools.product(CASES, ("cuda", "triton")):
        title = f"{name} on {backend}"
        try:
            reason = run(name, backend)
            tally.passed += reason is None
            tally.notes += [f"{title}: {reason}"] if reason else []
            print(f"{title}: {reason or 'passed'}", flush=True)
        except Exception as error:
            tally.fail(title, traceback.format_exc().splitlines()[-8:])
            error.__traceback__ = None  # it keeps the tensors alive
        tally.write()
    return int(tally.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
