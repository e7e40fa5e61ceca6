"""Records of a shard: where it begins decides on random bits, and the whole on means.

Most are written here, after the plan has packed its own, so that they are of shards beyond 2^35.
"""

from __future__ import annotations

import math

import pytest
import torch
from cases import BACKENDS, device_of, interpreted

from fused_optim.backends.interface import Bucket, BucketKey, Launch, TensorEntry
from fused_optim.distributed.geometry import Shard
from fused_optim.ops import RECORD_FIELDS, AdafactorRow, AdamWRow
from fused_optim.plan.tables import Plan
from fused_optim.plan.work import Work
from fused_optim.precision import rounding

kernels = pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "eager"], indirect=True)
firsts = pytest.mark.parametrize("first", [0, 3, 8, 2**35 + 5, 2**35 + 8])
STAGES = ("adafactor_statistics", "adafactor_finalise_", "adafactor_update_sums")
STAGES += ("adafactor_apply_",)
SEED, STEP, NUMBER = 0x123456789ABCDEF0, 7, 5
BFLOAT16 = torch.bfloat16


def drawn(value: torch.Tensor, stream: int, first: int) -> torch.Tensor:
    """Return float32 values as they are stored from element ``first`` of a tensor on."""
    word = NUMBER | stream << 28
    r = rounding.random_halves(first, value.shape, SEED, STEP, word, value.device)
    return rounding.round_stochastic(value, BFLOAT16, r)


def bucket_of(op: str, backend: str, shape: tuple[int, ...], row) -> tuple[Bucket, TensorEntry]:
    """A bucket of one tensor whose gradient is zero, so that what a step makes of it is simple."""
    device = device_of(backend)
    key = BucketKey(op, device, BFLOAT16, "stochastic", False, False)
    param, exp_avg = (torch.randn(shape, device=device).to(BFLOAT16) for _ in range(2))
    entry = TensorEntry(param, torch.zeros_like(param), number=NUMBER, exp_avg=exp_avg)
    return Bucket(key, [entry], [row], backend), entry


def run(backend: str, ops: tuple[str, ...], bucket: Bucket, **fields: int) -> None:
    """Run ops on records of which some fields are others."""
    plan, launch = Plan(bucket.key, backend), Launch(seed=SEED)
    plan.pack(bucket)
    for name, value in fields.items():
        for records in (plan.host, plan.records):
            records[:, RECORD_FIELDS.index(name)] = value
    for op in ops:
        Work(bucket.key, bucket, plan).run(op, launch)


@firsts
@pytest.mark.parametrize("more", [0, 13])
@kernels
def test_adamw(backend: str, more: int, first: int) -> None:
    """A whole chunk, and the rest of one."""
    whole = 4096 if interpreted(backend) else 8192
    shape = (13,) if more and interpreted(backend) else (whole + more,)
    row = AdamWRow(omb1=0.25, b2=0.5, step_size=0.0, eps=1.0, decay_after=0.875, step=STEP)
    bucket, entry = bucket_of("adamw", backend, shape, row)
    entry.exp_avg_sq = torch.rand_like(entry.param)
    p, m, v = (t.float() for t in (entry.param, entry.exp_avg, entry.exp_avg_sq))
    run(backend, ("adamw_",), bucket, first_element=first)
    assert torch.equal(entry.param, drawn(p * 0.875, 0, first))
    assert torch.equal(entry.exp_avg, drawn(m + 0.25 * (0.0 - m), 1, first))
    assert torch.equal(entry.exp_avg_sq, drawn(0.5 * v, 2, first))


@pytest.mark.parametrize(
    "columns", [slice(8, 24), slice(3, 8), slice(39, 40), slice(0, 40)], ids=str
)
@kernels
def test_a_shard_of_columns_draws_as_these_columns_of_the_whole(
    backend: str, columns: slice
) -> None:
    """As the plan packs it: a layout block says how far apart the rows are in the whole."""
    whole, start = (2, 6, 40), (0, 1, columns.start)
    width = columns.stop - columns.start
    shard = Shard(whole, (2, 5, width), start, ((), (0,), (1,)))
    row = AdamWRow(omb1=0.25, b2=0.5, step_size=0.0, eps=1.0, decay_after=0.875, step=STEP)
    bucket, entry = bucket_of("adamw", backend, shard.shape, row)
    entry.shard, entry.exp_avg_sq = shard, torch.rand_like(entry.param)
    p, m = entry.param.float(), entry.exp_avg.float()
    run(backend, ("adamw_",), bucket)

    def expected(value: torch.Tensor, stream: int) -> torch.Tensor:
        full = torch.zeros(whole, device=value.device)
        full[:, 1:, columns] = value
        return drawn(full, stream, 0)[:, 1:, columns]

    assert torch.equal(entry.param, expected(p * 0.875, 0))
    assert torch.equal(entry.exp_avg, expected(m + 0.25 * (0.0 - m), 1))


@firsts
@pytest.mark.parametrize("shape", [(13,), (2, 3), (9, 9), (6, 16), (9, 3, 2), (64, 1024)], ids=str)
@kernels
def test_adafactor(backend: str, shape: tuple[int, ...], first: int) -> None:
    """A learning rate of 0, so that parameters decay and momentum does."""
    if interpreted(backend) and shape[-1] > 1000:
        pytest.skip("its tiles and vectors are those of the smaller matrix")
    row = AdafactorRow(rho=0.0, b2=0.5, omb2=0.5, b1=0.75, decay_before=0.875, step=STEP)
    bucket, entry = bucket_of("adafactor", backend, shape, row)
    device = entry.param.device
    entry.exp_avg_sq = torch.rand(shape[:-1] if len(shape) > 1 else shape, device=device)
    if len(shape) > 1:
        entry.max_exp_avg_sq = torch.rand(shape[:-2] + shape[-1:], device=device)
    p, m = entry.param.float(), entry.exp_avg.float()
    run(backend, STAGES, bucket, first_element=first)
    assert torch.equal(entry.exp_avg, drawn(0.75 * m, 1, first))
    assert torch.equal(entry.param, drawn(p * 0.875 - 0.75 * m, 0, first))


@pytest.mark.parametrize("clip_threshold", [0.25, math.inf])
@pytest.mark.parametrize("shape", [(6, 16), (9, 9), (5, 3, 2), (3, 9, 8)], ids=str)
@kernels
def test_means_are_of_the_whole(
    backend: str, shape: tuple[int, ...], clip_threshold: float
) -> None:
    """The sums of the other shards are 0 here, but for their sizes as if they had been added."""
    numel, rows, cols = 5 * torch.Size(shape).numel(), 2 * shape[-2], 3 * shape[-1]
    key = BucketKey("adafactor", device_of(backend), torch.float32, "none", False, False)
    param, grad = (torch.randn(shape, device=key.device) for _ in range(2))
    entry = TensorEntry(param.clone(), grad, rms=torch.zeros((), device=key.device))
    entry.exp_avg_sq = torch.zeros(shape[:-1], device=key.device)
    entry.max_exp_avg_sq = torch.zeros(shape[:-2] + shape[-1:], device=key.device)
    options = {"b2": 0.0, "omb2": 1.0, "eps_grad": 0.0, "rho": 0.1, "flags": 1}
    row = AdafactorRow(clip_threshold=clip_threshold, **options)
    sizes = {"global_numel": numel, "global_rows": rows, "global_cols": cols}
    run(backend, STAGES, Bucket(key, entries=[entry], rows=[row]), **sizes)

    p, g = param.double(), grad.double()
    row_means, col_means = g.square().sum(-1) / cols, g.square().sum(-2) / rows
    r = row_means / (row_means.sum(-1, keepdim=True) / rows)
    u = g / (r.unsqueeze(-1) * col_means.unsqueeze(-2)).sqrt()
    rms = (p.square().sum() / numel).sqrt()
    size = (u.square().sum() / numel).sqrt()
    expected = p - 0.1 * rms * u / (size / clip_threshold).clamp(min=1.0)
    for found, wanted in (
        *((entry.exp_avg_sq, row_means), (entry.max_exp_avg_sq, col_means)),
        *((entry.rms, rms), (entry.param, expected)),
    ):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
