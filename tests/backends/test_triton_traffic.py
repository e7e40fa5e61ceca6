"""Bytes that Triton's kernels move per parameter, and what a step may not compile anew."""

from __future__ import annotations

import contextlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from entries import ROWS, entry_of, extra_of, key_of
from prepared import OnBuckets

from fused_optim.backends.interface import Bucket, Launch, TensorEntry
from fused_optim.ops import AdafactorRow

pytest.importorskip("triton")

from fused_optim.triton_kernels import adafactor, adafactor_geometry, adamw, launching  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

from fused_optim import triton_kernels  # noqa: E402

kernels = OnBuckets(triton_kernels)

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="counts what the interpreter loads and stores"
)

ADAFACTOR_OPS = ("adafactor_statistics", "adafactor_finalise_", "adafactor_update_sums")
ADAFACTOR_OPS += ("adafactor_apply_",)


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts the bytes of block loads and stores that their masks let through."""
    count: Counter = Counter()
    real = interpreter._interpreter

    def load(pointers, mask, other, dtype):
        if pointers.size > 1:
            count["loaded"] += int(np.count_nonzero(mask)) * np.dtype(dtype).itemsize
        return real.load(pointers, mask, other, dtype)

    def store(pointers, value, mask):
        if pointers.size > 1:
            count["stored"] += int(np.count_nonzero(mask)) * value.dtype.itemsize
        return real.store(pointers, value, mask)

    monkeypatch.setattr(interpreter, "_interpreter", SimpleNamespace(load=load, store=store))
    return count


@pytest.mark.parametrize("numel", [4096, 100])
@pytest.mark.parametrize(
    ("dtype", "mode", "state", "loaded", "stored"),
    [
        (torch.float32, "none", torch.float32, 16, 12),  # 28
        (torch.bfloat16, "nearest", torch.float32, 12, 10),  # 22
        (torch.bfloat16, "split", torch.float32, 14, 12),  # 26
        (torch.bfloat16, "split", torch.bfloat16, 10, 8),  # 18
        (torch.bfloat16, "stochastic", torch.bfloat16, 8, 6),  # 14
    ],
)
def test_adamw(moved, numel, dtype, mode, state, loaded, stored) -> None:
    key = key_of(dtype, mode)
    entry = entry_of(key, (numel,), grad=dtype, state=state)
    kernels.adamw_(Bucket(key, entries=[entry], rows=list(ROWS)), Launch())
    assert moved == {"loaded": loaded * numel, "stored": stored * numel}


@pytest.mark.parametrize(
    ("mode", "flags", "expected"),
    [("stochastic", 0, 10), ("stochastic", 1, 12), ("split", 0, 14), ("split", 1, 18)],
)
def test_adafactor(moved, mode: str, flags: int, expected: int) -> None:
    # With split, the square sums of the parameters read the remainders too.
    key = key_of(torch.bfloat16, mode, op="adafactor")
    param, grad = torch.randn(128, 512).bfloat16(), torch.randn(128, 512).bfloat16()
    entry = TensorEntry(param, grad, exp_avg_sq=torch.rand(128), max_exp_avg_sq=torch.rand(512))
    entry.extra = extra_of(key, param)
    bucket = Bucket(key, entries=[entry], rows=[AdafactorRow(b2=0.9, omb2=0.1, flags=flags)])
    for op in ADAFACTOR_OPS:
        getattr(kernels, op)(bucket, Launch())
    # Sums and statistics come on top: less than a tenth here, where a matrix is small.
    assert expected <= sum(moved.values()) / param.numel() < 1.1 * expected


def test_each_pass_begins_where_the_one_before_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forwards, backwards, forwards: what the cache still holds of the gradients is read first."""
    tiles, length = 3, adafactor_geometry.LINEAR_TILE.value
    entry = TensorEntry(*(torch.ones(tiles * length) for _ in range(2)))
    entry.exp_avg_sq = torch.ones(tiles * length)
    first, real, seen = entry.grad.data_ptr(), interpreter._interpreter, []

    def load(pointers, mask, other, dtype):
        tile = (int(pointers.min()) - first) // (4 * length)
        if mask.any() and 0 <= tile < tiles and tile not in seen:
            seen.append(tile)
        return real.load(pointers, mask, other, dtype)

    recording = SimpleNamespace(load=load, store=real.store)
    monkeypatch.setattr(interpreter, "_interpreter", recording)
    bucket = Bucket(
        key_of(torch.float32, "none", op="adafactor"), entries=[entry], rows=[AdafactorRow()]
    )
    orders = {}
    for op in ADAFACTOR_OPS:
        seen.clear()
        getattr(kernels, op)(bucket, Launch())
        orders[op] = list(seen)
    assert orders["adafactor_statistics"] == orders["adafactor_apply_"] == [0, 1, 2]
    assert orders["adafactor_update_sums"] == [2, 1, 0]


def test_one_kernel_serves_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter = Counter()
    real = launching.launch

    def launch(kernel, programs, *args, device, **constants) -> None:
        kinds = tuple(type(arg).__name__ for arg in args)
        seen[kernel, kinds, tuple(sorted(constants.items(), key=str))] += 1
        real(kernel, programs, *args, device=device, **constants)

    monkeypatch.setattr(adamw, "launch_kernel", launch)
    monkeypatch.setattr(adafactor, "launch_kernel", launch)
    for count, scale in ((1, None), (3, torch.tensor(2.0)), (2, None)):
        key = key_of(torch.bfloat16, "split")
        entries = [entry_of(key, (3 + count + i,), row=i) for i in range(count)]
        kernels.adamw_(
            Bucket(key, entries=entries, rows=list(ROWS)), Launch(scale, seed=count << 31)
        )
    assert len(seen) == 1
    seen.clear()
    for count in (1, 3):
        key = key_of(torch.float32, "none", op="adafactor")
        entries = [
            TensorEntry(torch.ones(4), torch.ones(4), exp_avg_sq=torch.ones(4))
            for _ in range(count)
        ]
        bucket = Bucket(key, entries=entries, rows=[AdafactorRow(step=count, rho=count / 7)])
        for op in ADAFACTOR_OPS:
            getattr(kernels, op)(bucket, Launch(clip=torch.tensor(1.0 / count)))
    assert len(seen) == 5


def test_an_unusable_cache_is_replaced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Kernel:
        def __init__(self, failures: int) -> None:
            self.failures = failures

        def __getitem__(self, grid):
            def run(*args, **constants) -> None:
                calls.append(launching.os.environ.get("TRITON_CACHE_DIR", "default"))
                if len(calls) <= self.failures:
                    raise FileNotFoundError("kernel.ptx")

            return run

    monkeypatch.setenv("TRITON_CACHE_DIR", "default")
    monkeypatch.setattr(launching, "interpreted", lambda kernel: False)
    monkeypatch.setattr(launching, "_device_guard", lambda device: contextlib.nullcontext())
    device = torch.device("cuda")
    launching.launch(Kernel(1), 1, device=device)
    assert calls[0] == "default" and "fused_optim" in calls[1]
    calls.clear()
    with pytest.raises(OSError, match=r"kernel\.ptx"):
        launching.launch(Kernel(2), 1, device=device)
    assert len(calls) == 2
