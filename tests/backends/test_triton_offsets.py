"""Offsets beyond 2^31 elements in Triton's kernels of gradients and Adafactor.

Memory that nobody touches costs nothing: each test has a map of the last chunk or tile alone.
"""

from __future__ import annotations

import pytest
import torch
from entries import assert_stored, bucket_of, copied, entry_of, key_of, reference_of, tensors_of
from prepared import OnBuckets
from stored import bits

from fused_optim.backends.interface import Bucket, Launch, TensorEntry
from fused_optim.ops import AdafactorRow, AdamWRow

pytest.importorskip("triton")

from fused_optim.triton_kernels import adafactor_geometry as geometry  # noqa: E402
from fused_optim.triton_kernels import elementwise, gradients  # noqa: E402

from fused_optim import triton_kernels  # noqa: E402

kernels = OnBuckets(triton_kernels)

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="hands CPU tensors to kernels, which is the interpreter's"
)

COUNT = 2**31 + 9
BFLOAT16 = torch.bfloat16


def far(values: torch.Tensor) -> torch.Tensor:
    """Return a tensor of COUNT elements that ends with ``values``."""
    room = torch.empty(COUNT, dtype=values.dtype)
    room[-len(values) :] = values
    return room


def only(bucket: Bucket, op: str, others: float = 0.0, **maps: list[tuple[int, int]]) -> Bucket:
    """Give a bucket's kernels these (tensor, part) pairs, and in scratch what others would sum."""
    tensors = {name: torch.tensor(pairs).int() for name, pairs in maps.items()}
    kernels.plan(bucket)._map = lambda name, counts: tensors[name]
    kernels.tables(bucket, op).scratch.fill_(others)
    return bucket


def test_adamw() -> None:
    """Of a chunk and of a stride."""
    key = key_of(BFLOAT16, "nearest")
    entry = entry_of(key, (9,), grad=BFLOAT16, state=BFLOAT16, row=1)
    distant = copied(entry, **{field: far(tensor) for field, tensor in tensors_of(entry).items()})
    strided = copied(entry, grad=torch.empty(2 * COUNT, dtype=BFLOAT16)[:: COUNT // 4])
    strided.grad.copy_(entry.grad)
    bucket = bucket_of(key, [distant, strided])
    only(bucket, "adamw_", chunks=[(0, (COUNT - 1) // elementwise.CHUNK_SIZE), (1, 0)])
    wanted = reference_of(bucket, copied(strided), Launch(seed=1))
    kernels.adamw_(bucket, Launch(seed=1))
    assert_stored(strided, {"param": wanted["param"]}, "strided")
    assert (bits(distant.param[-9:]) == wanted["param"]).all()  # nothing of it is drawn


def test_grad_square_sums() -> None:
    grad, buffer = torch.randn(9).bfloat16(), torch.randn(9).bfloat16()
    entry = TensorEntry(far(buffer), far(grad))
    bucket = Bucket(key_of(BFLOAT16, "nearest"), entries=[entry], rows=[AdamWRow()])
    last = (COUNT - 1) // gradients.CHUNK_SIZE
    only(bucket, "grad_square_sums", others=1.0, chunks=[(0, last)])
    found = kernels.grad_square_sums(bucket, Launch())
    assert found.item() == pytest.approx(last + float(grad.float().square().sum()), abs=0.1)


def test_adafactor() -> None:
    """A whole step of nine elements, whose statistics and updates are their own."""
    grad, param = torch.randn(9).bfloat16(), torch.randn(9).bfloat16()
    entry = TensorEntry(far(param), far(grad), exp_avg_sq=far(torch.zeros(9)))
    row = AdafactorRow(b2=0.0, omb2=1.0, rho=0.5, clip_threshold=float("inf"))
    bucket = Bucket(key_of(BFLOAT16, "nearest", op="adafactor"), entries=[entry], rows=[row])
    last = geometry.tile_count(1, 1, COUNT) - 1
    assert geometry.block_count(1, 1, COUNT) == last + 1
    only(bucket, "adafactor_statistics", tiles=[(0, last)], blocks=[(0, 0), (0, last)])
    for stage in ("statistics", "finalise_", "update_sums", "apply_"):
        getattr(kernels, f"adafactor_{stage}")(bucket, Launch())
    assert torch.equal(entry.exp_avg_sq[-9:], grad.float().square())
    moved = (param.float() - 0.5 * grad.float().sign()).bfloat16()
    torch.testing.assert_close(entry.param[-9:], moved, rtol=2**-7, atol=0.0)
