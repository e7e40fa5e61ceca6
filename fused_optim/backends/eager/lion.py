"""Lion in plain PyTorch."""

from __future__ import annotations

import torch

from fused_optim.precision import math_dtype, rounding
from fused_optim.precision.encoding import Draw, blocks, decode, encode_, store_moment_

from .gradients import preparation, skipped


def lion_(bucket, launch) -> None:
    """Run one Lion step on every tensor of the bucket (kernel contract, section 6)."""
    if skipped(launch):
        return
    mode, dtype = bucket.key.mode, math_dtype(bucket.key.dtype)
    for index, entry in enumerate(bucket.entries):
        row = bucket.rows[entry.row]
        prepare = preparation(row, launch, dtype, index)
        draw = Draw(launch.seed, row.step, entry.number, entry.shard)
        stored = [entry.param, entry.grad, entry.extra, entry.exp_avg]
        for first, (param, grad, extra, exp_avg) in blocks(stored):
            p, m = decode(param, extra, mode), exp_avg.to(dtype)
            update_(p, prepare(grad), m, row)
            encode_(param, extra, p, mode, draw, first)
            store_moment_(exp_avg, m, rounding.MOMENT_STREAMS[0], draw, first)


def update_(p, g, m, row) -> None:
    """Apply L1 to L3 in place to registers ``p`` and ``m``.

    ``g`` is only read: it may be the gradient itself.
    """
    u = (m * row.b1).add_(g * row.omb1)  # [L1]
    move = torch.where(u.isnan(), u, u.sign() * row.step_size)
    p.mul_(row.decay_before).sub_(move.add_(0.0))  # [L2]
    m.mul_(row.b2).add_(g * row.omb2)  # [L3]
