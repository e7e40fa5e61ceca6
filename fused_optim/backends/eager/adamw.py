"""AdamW in plain PyTorch: every peer's semantics, by the scalars of the row."""

from __future__ import annotations

import torch

from fused_optim.precision import moments
from fused_optim.precision.encoding import Draw, decode, encode_

from . import torch_fused
from .gradients import preparation, skipped


def adamw_(bucket, launch) -> None:
    """Run one AdamW step on every tensor of the bucket (kernel contract, section 6)."""
    if skipped(launch):
        return
    if torch_fused.covers(bucket, launch):
        torch_fused.run_(bucket)
        return
    for index, entry in enumerate(bucket.entries):
        row = bucket.rows[entry.row]
        dtype = torch.float64 if bucket.key.dtype is torch.float64 else torch.float32
        prepare = preparation(row, launch, dtype, index)
        draw = Draw(launch.seed, row.step, entry.number, entry.shard)
        _step_tensor(entry, row, prepare, bucket.key.mode, draw)


def update_(p, g, m, v, h, row) -> None:
    """Apply W1 to W6 in place to registers ``p``, ``m``, ``v`` and, for amsgrad, ``h``.

    ``g`` is only read: it may be the gradient itself.
    """
    if row.l2 != 0.0:
        g = g + p * row.l2  # [W1]
    p.mul_(row.decay_before)  # [W2]
    m.add_((g - m).mul_(row.omb1))  # [W3]
    v.mul_(row.b2).add_((g * row.omb2).mul_(g))  # [W4]
    if h is not None:
        torch.maximum(h, v, out=h)  # [W5]
    denominator = (v if h is None else h).sqrt().mul_(row.denom_scale).add_(row.eps)
    p.sub_((m * row.step_size).div_(denominator).add_(0.0)).mul_(row.decay_after)  # [W6]


def _step_tensor(entry, row, prepare, mode: str, draw: Draw) -> None:
    held = [entry.exp_avg, entry.exp_avg_sq, entry.max_exp_avg_sq]
    for first, block in moments.blocks_of(entry.param, entry.grad, entry.extra, held):
        _step_block(first, block, held, row, prepare, mode, draw)


def _step_block(first: int, stored, held, row, prepare, mode: str, draw: Draw) -> None:
    """Step one block. Its registers are freed before those of the next block are made."""
    param, grad, extra, *beside = stored
    value, g = decode(param, extra, mode), prepare(grad)
    m, v, h = moments.load(held, beside, first, param)
    # The operator differs in last bits, which a stochastically rounded moment would show.
    in_place = all(new is old for new, old in zip((m, v, h), beside, strict=True))
    alone = torch_fused.singly(draw.shard, first, g.numel())
    if not (in_place and torch_fused.update_(value, g, m, v, h, row, alone)):
        update_(value, g, m, v, h, row)
    encode_(param, extra, value, mode, draw, first)
    moments.store(held, beside, (m, v, h), first, draw)
