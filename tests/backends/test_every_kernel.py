"""Every kernel over odd sizes, layouts and modes on a GPU; compute-sanitizer may watch it.

gpu-check runs this for a backend, which FUSED_OPTIM_BACKEND names. Results are held to the eager
backend's on a CPU, loosely: the parity tests are exact. The sizes end in the middle of vectors,
chunks and tiles.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import fused_optim
from fused_optim import precision, torch_compat
from fused_optim.backends import dispatch

SHAPES = ((1,), (9,), (8192 + 13,), (5, 3), (33, 40), (300, 24), (2, 3, 17), (0, 4), (130, 1030))
LAYOUTS = ("dense", "strided")
STEPS = 2
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


Make = Callable[..., Any]
OPTIMIZERS: dict[str, Make] = {
    "AdamW": lambda p, **o: fused_optim.AdamW(p, weight_decay=0.1, state_dtype=torch.bfloat16, **o),
    "torch AdamW amsgrad": lambda p, **o: torch_compat.AdamW(p, amsgrad=True, **o),
    "Adafactor": lambda p, **o: fused_optim.Adafactor(p, beta1=0.9, max_grad_norm=1.0, **o),
    "torch Adafactor": lambda p, **o: torch_compat.Adafactor(p, **o),
    "Lion": lambda p, **o: fused_optim.Lion(p, weight_decay=0.1, **o),
    "AdamW clipped": lambda p, **o: fused_optim.AdamW(p, max_grad_norm=1.0, **o),
    "AdamW capturable": lambda p, **o: fused_optim.AdamW(p, capturable=True, **o),
}
MODES = {
    torch.float32: ("auto",),
    torch.bfloat16: ("split", "stochastic", "nearest", "kahan", "master"),
    torch.float16: ("master", "stochastic", "nearest", "kahan"),
}


def cases() -> Iterator[Any]:
    """Every optimizer, dtype, mode and layout, those that are used most first.

    Those of a dtype and mode are a group of pytest-xdist's: no two processes compile one kernel.
    """
    kinds = [(dtype, mode) for dtype, modes in MODES.items() for mode in modes]
    for layout, (dtype, mode), name in itertools.product(LAYOUTS, kinds, OPTIMIZERS):
        case = (name, str(dtype).removeprefix("torch."), mode, layout)
        group = pytest.mark.xdist_group(f"{dtype} {mode}")
        yield pytest.param(name, dtype, mode, layout, id=", ".join(case), marks=group)


def parameters(dtype: torch.dtype, layout: str, device: str) -> list[torch.nn.Parameter]:
    """Return parameters with gradients of several dtypes, the same on every device."""
    source = torch.Generator().manual_seed(0)
    params = []
    for number, shape in enumerate(SHAPES):
        param = torch.nn.Parameter(torch.randn(shape, generator=source).to(dtype).to(device))
        grad = torch.randn(shape, generator=source).to(precision.SUPPORTED_DTYPES[number % 4])
        if layout == "strided" and len(shape) == 2:
            grad = grad.t().contiguous().to(device).t()
        elif layout == "strided":  # an element further, which no vector load is aligned to
            grad = torch.cat([grad.flatten()[:1], grad.flatten()]).to(device)[1:].view(shape)
        param.main_grad = grad.to(device)
        params.append(param)
    return params


def trained(
    name: str, dtype: torch.dtype, mode: str, layout: str, where: tuple[str, str]
) -> list[torch.Tensor]:
    """Return the parameters after two steps on ``where``, a backend and a device."""
    backend, device = where
    params = parameters(dtype, layout, device)
    optimizer = OPTIMIZERS[name](params, low_precision=mode, backend=backend)
    for _ in range(STEPS):
        optimizer.step()
    return [p.detach().cpu() for p in params]  # waits for the device


def check(name: str, dtype: torch.dtype, mode: str, layout: str, where: tuple[str, str]) -> None:
    watched_until = os.environ.get("GPU_CHECK_WATCHES_UNTIL")  # by a sanitizer
    if watched_until and time.time() > float(watched_until):
        pytest.skip("not reached in time")
    result = trained(name, dtype, mode, layout, where)
    if watched_until:  # its time is for kernels
        return
    expected = trained(name, dtype, mode, layout, ("eager", "cpu"))
    for p, q in zip(result, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=TOLERANCE[p.dtype], atol=1e-6)


@pytest.mark.gpu
@pytest.mark.long
@pytest.mark.parametrize(("name", "dtype", "mode", "layout"), list(cases()))
def test_steps_are_those_of_eager(name: str, dtype: torch.dtype, mode: str, layout: str) -> None:
    backend = os.environ.get(dispatch.ENVIRONMENT_VARIABLE, "auto")
    try:
        check(name, dtype, mode, layout, (backend, "cuda"))
    except Exception:
        try:
            torch.ones(1, device="cuda").cpu()
        except RuntimeError:  # after an illegal access nothing in a process does
            pytest.exit("the device does not answer", returncode=1)
        raise


# --- without a GPU --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_eager_is_held_to_itself_and_a_wrong_element_is_seen(
    name: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = (name, torch.bfloat16, "split", layout, ("eager", "cpu"))
    monkeypatch.setitem(globals(), "SHAPES", ((9,), (5, 3)))
    check(*case)
    (right, *others), results = trained(*case), []
    wrong = right.clone()
    wrong[-1] += 0.5
    results += [[wrong, *others], [right, *others]]
    monkeypatch.setitem(globals(), "trained", lambda *_: results.pop())
    with pytest.raises(AssertionError, match="Mismatched elements: 1 / 9"):
        check(*case)


def test_every_optimizer_mode_and_layout_is_stepped() -> None:
    found = {case.values for case in cases()}
    assert len(found) == len(list(cases())) == len(OPTIMIZERS) * (1 + 5 + 4) * 2
    for layout in LAYOUTS:
        grads = [p.main_grad for p in parameters(torch.bfloat16, layout, "cpu")]
        assert {g.dtype for g in grads} == set(precision.SUPPORTED_DTYPES)
        assert all(g.is_contiguous() for g in grads) == (layout == "dense")
        assert any(g.data_ptr() % 16 for g in grads if g.numel()) == (layout == "strided")
