"""Offsets beyond 2^31 elements in the CUDA kernels, run on the CPU.

Memory that nobody touches costs nothing: each test has a map of the last chunk or tile alone.
"""

from __future__ import annotations

import host_module
import pytest
import torch
from entries import ROWS, copied, entry_of, key_of, reference_of, tensors_of

from fused_optim.backends.interface import Bucket, Launch, TensorEntry
from fused_optim.ops import AdafactorRow
from fused_optim.plan import records as plan_records

COUNT = 2**31 + 9
CHUNK = 8192
BFLOAT16 = torch.bfloat16
STAGES = ("statistics", "finalise_", "update_sums", "apply_")


def far(values: torch.Tensor) -> torch.Tensor:
    """Return a tensor of COUNT elements that ends with ``values``."""
    room = torch.empty(COUNT, dtype=values.dtype)
    room[-len(values) :] = values
    return room


def only(bucket: Bucket, **maps: list[tuple[int, int]]) -> Bucket:
    """Give a bucket's kernels these (tensor, part) pairs of chunks, tiles and so on, not all."""
    tensors = {name: torch.tensor(pairs).int().view(-1, 2) for name, pairs in maps.items()}
    host_module.kernels().plan(bucket)._map = lambda name, counts: tensors[name]
    return bucket


def last_chunk(bucket: Bucket) -> Bucket:
    return only(bucket, chunks=[(0, (COUNT - 1) // CHUNK)])


def last_tile(bucket: Bucket) -> Bucket:
    """The same for Adafactor; scratch is zero, as if there were zeros in all other tiles."""
    extension = host_module.backend()._C
    (entry,) = bucket.entries
    tile = extension.adafactor_tiles(*plan_records.matrix_shape(entry.param.shape)) - 1
    lines = [(0, 0), (0, tile + 1)] if entry.param.dim() == 1 else [(0, 0)]
    only(bucket, tiles=[(0, tile)], lines=lines, visits=[])
    host_module.kernels().tables(bucket, "adafactor_statistics").scratch.zero_()
    return bucket


def test_adamw() -> None:
    """Of a chunk and of a stride."""
    key = key_of(BFLOAT16, "nearest")
    entry = entry_of(key, (9,), grad=BFLOAT16, row=1)
    distant = copied(entry, **{name: far(t) for name, t in tensors_of(entry).items()})
    strided = copied(entry, grad=torch.empty(2 * COUNT, dtype=BFLOAT16)[:: COUNT // 4])
    strided.grad.copy_(entry.grad)
    bucket = Bucket(key, entries=[distant, strided], rows=list(ROWS))
    wanted = reference_of(bucket, entry, Launch())
    only(bucket, chunks=[(0, (COUNT - 1) // CHUNK), (1, 0)])
    host_module.kernels().adamw_(bucket, Launch())
    for found in (distant.param[-9:], strided.param):
        assert (found.view(torch.int16).numpy().view("uint16") == wanted["param"]).all()
    for name in ("exp_avg", "exp_avg_sq"):
        assert (getattr(distant, name)[-9:].numpy() == wanted[name]).all()


def test_grad_square_sums() -> None:
    grad = torch.randn(9).bfloat16()
    entry = TensorEntry(far(torch.zeros(9).bfloat16()), far(grad))
    bucket = Bucket(key_of(BFLOAT16, "nearest"), entries=[entry], rows=list(ROWS))
    (total,) = host_module.kernels().grad_square_sums(last_chunk(bucket), Launch())
    torch.testing.assert_close(total, grad.float().square().sum(), rtol=1e-6, atol=0.0)


def test_adafactors_vectors() -> None:
    """A whole step of nine elements, whose statistics and updates are their own."""
    grad, param = torch.randn(9).bfloat16(), torch.randn(9).bfloat16()
    entry = TensorEntry(far(param), far(grad), exp_avg_sq=far(torch.zeros(9)))
    row = AdafactorRow(b2=0.0, omb2=1.0, rho=0.5, clip_threshold=float("inf"))
    bucket = Bucket(key_of(BFLOAT16, "nearest", op="adafactor"), entries=[entry], rows=[row])
    last_tile(bucket)
    for stage in STAGES:
        getattr(host_module.kernels(), f"adafactor_{stage}")(bucket, Launch())
    assert torch.equal(entry.exp_avg_sq[-9:], grad.float().square())
    moved = (param.float() - 0.5 * grad.float().sign()).bfloat16()
    torch.testing.assert_close(entry.param[-9:], moved, rtol=2**-7, atol=0.0)


@pytest.mark.parametrize("shape", [(40_000, 65_536), (2_800_000, 800)], ids=str)
def test_adafactors_matrices(shape: tuple[int, int]) -> None:
    """The last tile has one number that is not zero."""
    grad = torch.empty(shape, dtype=BFLOAT16)
    grad[-1024:, -256:] = 0.0
    grad[-1, -1] = 3.0
    entry = TensorEntry(grad, grad, exp_avg_sq=torch.zeros(shape[0]))
    entry.max_exp_avg_sq = torch.zeros(shape[1])
    bucket = Bucket(
        key_of(BFLOAT16, "nearest", op="adafactor"), entries=[entry], rows=[AdafactorRow(flags=0)]
    )
    last_tile(bucket)
    assert host_module.kernels().adafactor_statistics(bucket, Launch()).item() == 9.0
