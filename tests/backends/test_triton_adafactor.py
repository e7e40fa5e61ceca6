"""Triton's Adafactor and gradient kernels: against the oracle, eager and themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import ADAFACTOR, TensorCase
from entries import (
    DTYPES,
    assert_unchanged,
    copied,
    entry_of,
    extra_of,
    key_of,
    spread,
    tensors_of,
)
from parity import Bench
from prepared import OnBuckets

from fused_optim.backends import dispatch, eager
from fused_optim.backends.interface import Bucket, BucketKey, Launch, TensorEntry
from fused_optim.ops import AdafactorRow, AdamWRow

pytest.importorskip("triton")

from fused_optim.triton_kernels import adafactor, adafactor_geometry, launching  # noqa: E402

from fused_optim import triton_kernels  # noqa: E402

kernels = OnBuckets(triton_kernels)

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="hands CPU tensors to kernels, which is the interpreter's"
)

OPS = ("adafactor_statistics", "adafactor_finalise_", "adafactor_update_sums", "adafactor_apply_")
STORAGES = [
    (torch.float32, "none", None),
    (torch.bfloat16, "split", torch.float32),
    (torch.bfloat16, "stochastic", None),
    (torch.float16, "master", torch.float64),
    (torch.float16, "kahan", torch.bfloat16),
]
ROW = AdafactorRow(b2=0.9, omb2=0.1, b1=0.9, omb1=0.1, rho=0.1, flags=1, decay_alpha=0.1, step=3)


def adafactor_entry(
    key: BucketKey,
    shape: tuple[int, ...],
    *,
    grad: torch.dtype | None = None,
    momentum: bool = False,
    number: int = 0,
) -> TensorEntry:
    param = spread(shape, -2, 0).to(key.dtype)
    entry = TensorEntry(param, spread(shape, -2, 0).to(grad or key.dtype), 0, number)
    if len(shape) < 2:
        entry.exp_avg_sq = torch.rand(shape)
    else:
        entry.exp_avg_sq = torch.rand(shape[:-1])
        entry.max_exp_avg_sq = torch.rand(shape[:-2] + shape[-1:])
    if momentum:
        entry.exp_avg = spread(shape, -3, -1).to(torch.bfloat16)
    entry.extra, entry.rms = extra_of(key, param), torch.zeros(())
    return entry


def run(backend: Any, bucket: Bucket, launch: Launch) -> torch.Tensor:
    results = [getattr(backend, op)(bucket, launch) for op in OPS]
    return results[0]


def assert_near(actual: TensorEntry, expected: TensorEntry, what: str) -> None:
    """Hold an entry's values to another's: sums are done in another order, so not to the bit."""
    for field, tensor in tensors_of(actual).items():
        if field == "extra" and tensor.dtype is torch.int16:
            continue  # the low bits of a value whose high bits are the parameter
        ulp = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}.get(tensor.dtype, 2.0**-19)
        ulp = 2.0**-19 if field == "grad" else ulp
        torch.testing.assert_close(
            tensor.float(),
            getattr(expected, field).float(),
            rtol=ulp,
            atol=1e-6,
            msg=lambda text, field=field: f"{what} {field}: {text}",
        )


# --- against the oracle, through the optimizers --------------------------------------------------


def test_tiles_are_the_oracles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.TEST_VARIABLE, "triton")
    shapes = [(18, 520), (530, 16), (2, 20, 9), (300, 3, 3), (17_000,), (1, 16_500)]
    tensors = [TensorCase(shape, torch.float32) for shape in shapes]
    bench = Bench(ADAFACTOR[1], tensors, "triton", seed=1)
    bench.randomise(5)
    bench.step_and_check(5, bench.set_gradients(-2, 0))


# --- against eager -------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "mode", "grad"), STORAGES)
def test_equals_eager_in_every_storage(dtype, mode, grad) -> None:
    key = key_of(dtype, mode, op="adafactor")
    shapes = [(33,), (0,), (5, 6), (9, 24), (4, 2, 2), ()]
    entries = [
        adafactor_entry(key, shape, grad=grad, momentum=i % 2 == 1, number=i)
        for i, shape in enumerate(shapes)
    ]
    twins = [copied(entry) for entry in entries]
    launch = Launch(clip=torch.tensor(0.7), grad_scale=torch.tensor(4.0), seed=9)
    sums = run(kernels, Bucket(key, entries=entries, rows=[ROW]), launch)
    expected = run(eager, Bucket(key, entries=twins, rows=[ROW]), launch)
    torch.testing.assert_close(sums, expected, rtol=1e-6, atol=0.0)
    for entry, twin in zip(entries, twins, strict=True):
        assert_near(entry, twin, str(tuple(entry.param.shape)))


@pytest.mark.parametrize("shape", [(12, 10), (2, 17, 8)])
def test_layouts_change_little(shape: tuple[int, ...]) -> None:
    key = key_of(torch.float32, "none", op="adafactor")
    plain = adafactor_entry(key, shape, momentum=True)
    others = []
    for names in (("grad",), ("param",), ("param", "grad", "exp_avg")):
        entry = copied(plain)
        for name in names:
            tensor = getattr(entry, name)
            setattr(entry, name, tensor.movedim(-1, 0).contiguous().movedim(0, -1))
        others.append(entry)
    unaligned = copied(plain)
    unaligned.grad = torch.cat([torch.ones(1), plain.grad.flatten()])[1:].view(shape)
    run(kernels, Bucket(key, entries=[plain, *others, unaligned], rows=[ROW]), Launch())
    for entry in (*others, unaligned):
        assert_near(entry, plain, "layout")


def test_torch_semantics() -> None:
    row = AdafactorRow(
        b2=0.9, omb2=0.1, eps_grad=0.0, decay_before=0.9, mean_floor=1e-3, update_cap=5.0, flags=5
    )
    key = key_of(torch.float32, "none", op="adafactor")
    entries = [adafactor_entry(key, shape) for shape in ((6, 8), (1, 5), (9,), (2, 3, 3))]
    entries[0].grad[0, 0] = float("nan")
    entries[1].grad.zero_()
    twins = [copied(entry) for entry in entries]
    run(kernels, Bucket(key, entries=entries, rows=[row]), Launch())
    run(eager, Bucket(key, entries=twins, rows=[row]), Launch())
    for entry, twin in zip(entries, twins, strict=True):
        torch.testing.assert_close(entry.param, twin.param, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_zero_gradients_hold_still() -> None:
    for flags, moves in ((1, True), (3, False)):
        key = key_of(torch.float32, "none", op="adafactor")
        entries = [adafactor_entry(key, shape) for shape in ((4, 9), (5,), (2, 2, 2))]
        for entry in entries:
            entry.grad.zero_()
        before = [entry.param.clone() for entry in entries]
        row = AdafactorRow(b2=0.9, omb2=0.1, decay_alpha=0.5, flags=flags)
        run(kernels, Bucket(key, entries=entries, rows=[row]), Launch())
        changed = [not torch.equal(e.param, p) for e, p in zip(entries, before, strict=True)]
        assert changed == [moves] * 3


def test_found_inf_leaves_everything_untouched() -> None:
    key = key_of(torch.bfloat16, "split", op="adafactor")
    entries = [adafactor_entry(key, shape, momentum=True) for shape in ((4, 9), (5,), (2, 2, 2))]
    before = [tensors_of(copied(entry)) for entry in entries]
    launch = Launch(found_inf=torch.tensor(2.0), seed=1)
    run(kernels, Bucket(key, entries=entries, rows=[ROW]), launch)
    for entry, tensors in zip(entries, before, strict=True):
        assert_unchanged(entry, tensors)


def test_the_same_bits_every_time() -> None:
    key = key_of(torch.float32, "none", op="adafactor")
    entry = adafactor_entry(key, (20, 520))
    twin = copied(entry)
    run(kernels, Bucket(key, entries=[entry], rows=[ROW]), Launch())
    run(kernels, Bucket(key, entries=[adafactor_entry(key, (7,)), twin], rows=[ROW]), Launch())
    assert torch.equal(entry.param, twin.param)


def test_launches_do_not_depend_on_the_number_of_tensors() -> None:
    key = key_of(torch.float32, "none", op="adafactor")
    for count in (1, 4):
        entries = [adafactor_entry(key, (2, 3 + i)) for i in range(count)]
        before = launching.launches
        run(kernels, Bucket(key, entries=entries, rows=[ROW]), Launch())
        assert launching.launches - before == 5
        entries = [entry_of(key_of(torch.float32, "none"), (3,)) for _ in range(count)]
        before = launching.launches
        kernels.adamw_(
            Bucket(key_of(torch.float32, "none"), entries=entries, rows=[AdamWRow()]), Launch()
        )
        assert launching.launches - before == 1


# --- geometry ------------------------------------------------------------------------------------


def test_scratch_is_small_for_large_matrices() -> None:
    for shape in ((1, 4096, 4096), (1, 128_256, 4096), (1, 1, 10**9), (8, 14_336, 4096)):
        numel = shape[0] * shape[1] * shape[2]
        assert 4 * adafactor_geometry.adafactor_scratch(*shape) < 0.01 * 2 * numel, shape


def test_tiles_cover_every_element_once() -> None:
    # One number per element, summed by the kernels' tiles: any that is missed or met twice shows.
    key = key_of(torch.float32, "none", op="adafactor")
    for shape in ((513, 9), (2, 9, 40), (300, 2, 3), (16_385,), (1, 600), (20, 600)):
        entry = adafactor_entry(key, shape)
        entry.grad = torch.ones(shape)
        entry.exp_avg_sq.zero_()
        if entry.max_exp_avg_sq is not None:
            entry.max_exp_avg_sq.zero_()
        row = AdafactorRow(b2=0.0, omb2=1.0, eps_grad=0.0, flags=0)
        bucket = Bucket(key, entries=[entry], rows=[row])
        sums = kernels.adafactor_statistics(bucket, Launch())
        assert sums.tolist() == [np.prod(shape)], shape
        kernels.adafactor_finalise_(bucket, Launch())
        assert (entry.exp_avg_sq == 1).all(), shape
        assert entry.max_exp_avg_sq is None or (entry.max_exp_avg_sq == 1).all(), shape


def test_no_chain_of_sums_is_longer_than_32() -> None:
    rows, cols = adafactor_geometry.TILE_ROWS.value, adafactor_geometry.TILE_COLS.value
    height, length = adafactor.BLOCK["HEIGHT"], adafactor.BLOCK["LENGTH"]
    assert rows // height <= 32 and cols == 2 * length and cols // (length // 8) <= 32
    assert adafactor_geometry.LINEAR_TILE.value // (height * length // 8) <= 32
    assert adafactor_geometry.SMALL_SIDE.value <= 32 and adafactor.FOLD["PARTS"] <= 32


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", DTYPES)
def test_square_sums(grad: torch.dtype) -> None:
    key = key_of(torch.float32, "none")
    sizes = [(0,), (1,), (4096 + 300,), (7, 30), ()]
    entries = [entry_of(key, size, grad=grad) for size in sizes]
    entries[3].grad = entries[3].grad.t().contiguous().t()
    rows = [AdamWRow(grad_mul=-1.0, clip_value=0.5)]
    launch = Launch(
        grad_scale=torch.tensor(2.0), found_inf=torch.tensor(1.0), clip=torch.tensor(9.0)
    )
    before = launching.launches
    sums = kernels.grad_square_sums(Bucket(key, entries=entries, rows=rows), launch)
    assert launching.launches - before <= 2
    expected = eager.grad_square_sums(Bucket(key, entries=entries, rows=rows), launch)
    torch.testing.assert_close(sums, expected, rtol=1e-6, atol=0.0)
