"""Where Triton's kernels read and write: inside their tensors, and nowhere around them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from entries import ROWS, entry_of, extra_of, key_of, spread, tensors_of
from prepared import OnBuckets

from fused_optim.backends.interface import Bucket, BucketKey, Launch, TensorEntry
from fused_optim.ops import AdafactorRow

pytest.importorskip("triton")

import interpreter  # noqa: E402
from fused_optim.triton_kernels import elementwise, gradients  # noqa: E402

from fused_optim import triton_kernels  # noqa: E402

kernels = OnBuckets(triton_kernels)

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="hands CPU tensors to kernels, which is the interpreter's"
)

MARGIN = 2**14  # elements: more than any block
ADAFACTOR = ("statistics", "finalise_", "update_sums", "apply_")
GRADS = (torch.float32, torch.bfloat16, torch.float64)
STORAGES = [(torch.float32, "none"), (torch.bfloat16, "split"), (torch.float16, "kahan")]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make full chunks cheap to run."""
    monkeypatch.setattr(elementwise, "CHUNK_SIZE", 1024)
    monkeypatch.setattr(gradients, "CHUNK_SIZE", 1024)


def with_room(entry: TensorEntry) -> list[tuple[range, range]]:
    """Move an entry's tensors into memory of their own; return the bytes of that and of them."""
    ranges = []
    for name, tensor in tensors_of(entry).items():
        room = torch.full((tensor.numel() + 2 * MARGIN,), 77).to(tensor.dtype)
        inner = room[MARGIN : MARGIN + tensor.numel()]
        inner = inner.as_strided(tensor.shape, tensor.stride(), inner.storage_offset())
        setattr(entry, name, inner.copy_(tensor))
        ranges.append(tuple(range(t.data_ptr(), t.data_ptr() + t.nbytes) for t in (room, inner)))
    return ranges


def outside(seen: list[tuple[np.ndarray, int]], rooms: list[tuple[range, range]]) -> set[int]:
    """Return the addresses of accesses to a room that are not wholly to its tensor."""
    found: set[int] = set()
    for addresses, size in seen:
        first = np.asarray(addresses).astype(np.int64)
        for room, inner in rooms:
            there = (first + size > room.start) & (first < room.stop)
            beyond = (first < inner.start) | (first + size > inner.stop)
            found.update(first[there & beyond].tolist())
    return found


def assert_stays_inside(ops: Sequence[str], bucket: Bucket) -> None:
    rooms = [both for entry in bucket.entries for both in with_room(entry)]
    with interpreter.accesses() as seen:
        for op in ops:
            getattr(kernels, op)(bucket, Launch())
    assert not outside(seen, rooms)
    blocks = sum(addresses.size > 1 for addresses, _ in seen)
    assert blocks >= len(bucket.entries)


def strided(entry: TensorEntry) -> TensorEntry:
    entry.grad = entry.grad.movedim(0, -1).contiguous().movedim(-1, 0)
    return entry


@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize(("dtype", "mode"), STORAGES)
def test_adamw(dtype: torch.dtype, mode: str, grad: torch.dtype) -> None:
    key = key_of(dtype, mode, amsgrad=True)
    entries = [entry_of(key, shape, grad=grad) for shape in ((1,), (1024 + 9,), (3, 5))]
    strided(entries[-1])
    assert_stays_inside(["adamw_"], Bucket(key, entries=entries, rows=list(ROWS)))


@pytest.mark.parametrize("grad", GRADS)
def test_gradients(grad: torch.dtype) -> None:
    key = key_of(torch.float32, "none")
    entries = [
        TensorEntry(torch.randn(shape), torch.randn(shape).to(grad))
        for shape in ((1,), (1024 + 9,), (3, 5))
    ]
    strided(entries[-1])
    assert_stays_inside(["grad_square_sums"], Bucket(key, entries=entries, rows=list(ROWS)))


def adafactor_entry(key: BucketKey, shape: tuple[int, ...], grad: torch.dtype) -> TensorEntry:
    entry = TensorEntry(spread(shape, -2, 0).to(key.dtype), spread(shape, -2, 0).to(grad))
    entry.exp_avg, entry.rms = torch.zeros(shape), torch.zeros(())
    entry.extra = extra_of(key, entry.param)
    entry.exp_avg_sq = torch.rand(shape[:-1] if len(shape) > 1 else shape)
    if len(shape) > 1:
        entry.max_exp_avg_sq = torch.rand(shape[:-2] + shape[-1:])
    return entry


@pytest.mark.parametrize(("storage", "grad"), list(zip(STORAGES, GRADS, strict=True)))
def test_adafactor(storage: tuple[torch.dtype, str], grad: torch.dtype) -> None:
    key = key_of(*storage, op="adafactor")
    shapes = [(13,), (9, 9), (6, 16), (3, 2, 2), (1, 9), (7, 11)]
    entries = [adafactor_entry(key, shape, grad) for shape in shapes]
    strided(entries[-1])
    row = AdafactorRow(b2=0.9, omb2=0.1, b1=0.9, omb1=0.1, rho=0.1, flags=1)
    assert_stays_inside(
        [f"adafactor_{op}" for op in ADAFACTOR], Bucket(key, entries=entries, rows=[row])
    )


def test_what_is_around_a_tensor_is_outside() -> None:
    entry = TensorEntry(torch.ones(3), torch.ones(5))
    rooms = with_room(entry)
    for _, inner in rooms:
        for address, is_outside in (
            *((inner.start - 4, True), (inner.start, False), (inner.stop - 4, False)),
            *((inner.stop - 2, True), (inner.stop, True)),
        ):
            assert bool(outside([(np.array([address]), 4)], rooms)) == is_outside
