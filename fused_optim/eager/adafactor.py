"""Factored Adafactor in plain PyTorch: transformers' and torch's semantics by the row's scalars.

The ops are the stages of the kernel contract (section 6). Each walks its tensors in tiles, so that
no temporary is ever as large as a parameter; what one hands to the next is in the bucket's scratch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch

from . import rounding
from .gradients import preparation, skipped
from .storage import Draw, block_size, decode, encode_, store_moment_

_SCALE_PARAMETER, _HOLD_IF_ZERO, _CLIP_IGNORES_NAN = 1, 2, 4

Tile = tuple[slice, slice, slice]


@dataclasses.dataclass(slots=True)
class _Work:
    """One tensor between the stages of a step. Tensors are [batch, rows, cols]."""

    entry: object
    row: object
    param: torch.Tensor
    grad: torch.Tensor
    exp_avg: torch.Tensor | None
    extra: torch.Tensor | None
    row_sum: torch.Tensor  # [batch, rows] float64, as are the sums below
    col_sum: torch.Tensor  # [batch, cols]
    square_sum: torch.Tensor  # []
    p_sum: torch.Tensor  # []
    u_sum: torch.Tensor  # []
    factors: tuple[torch.Tensor, ...] = ()  # r and c of F4, or V
    alpha: torch.Tensor | None = None  # []
    prepare: Callable[[torch.Tensor], torch.Tensor] | None = None  # clipped

    @property
    def factored(self) -> bool:
        return self.entry.max_exp_avg_sq is not None


def adafactor_statistics(bucket, launch) -> torch.Tensor:
    """Run F1 and F2: sums of squares of gradients and parameters.

    Returns:
        ``[entries]``: the sum of squares of each gradient, not clipped.
    """
    bucket.scratch = [_work(bucket, entry) for entry in bucket.entries]
    for work in _pending(bucket):
        prepare = preparation(work.row, launch, _math_dtype(bucket), None)
        for _, (b, r, c) in _tiles(work.grad):
            g_square = prepare(work.grad[b, r, c]).square()
            if work.factored:
                work.row_sum[b, r] += g_square.sum(-1)  # [F1]
                work.col_sum[b, c] += g_square.sum(-2)
            else:
                work.square_sum += g_square.sum()
            if work.row.flags & _SCALE_PARAMETER:
                extra = None if work.extra is None else work.extra[b, r, c]
                value = decode(work.param[b, r, c], extra, bucket.key.mode)
                work.p_sum += value.square().sum()  # [F2]
        if work.factored:
            work.square_sum = work.row_sum.sum()
    sums = [bucket.scratch[i].square_sum for i in range(len(bucket.entries))]
    return torch.stack(sums).to(_math_dtype(bucket))


def adafactor_finalise_(bucket, launch) -> None:
    """Run F3 to F5: advance the statistics and find each tensor's step size before clipping."""
    if skipped(launch):
        return
    for index, work in enumerate(bucket.scratch):
        work.prepare = preparation(work.row, launch, _math_dtype(bucket), index)
        if work.grad.numel() == 0:
            continue
        if work.factored:
            clip_square = 1.0
            if launch.clip is not None:
                clip = launch.clip[index] if launch.clip_per_tensor else launch.clip
                clip_square = clip.double().square()
            work.factors = _finalise_factored_(work, clip_square)
        else:
            work.factors = (_finalise_unfactored_(work),)
        work.alpha = _alpha(work)


def adafactor_update_sums(bucket, launch) -> None:
    """Run F6: the sum of squares of each update, before it is scaled."""
    if skipped(launch):
        return
    for work in _pending(bucket):
        for _, at in _tiles(work.grad):
            u, by_row = _update(work, at)
            row_sums = u.square_().sum(-1, keepdim=True).double()
            work.u_sum += row_sums.mul_(by_row).mul_(by_row).sum()


def adafactor_apply_(bucket, launch) -> None:
    """Run F7 to F10: scale the updates and write the parameters."""
    if skipped(launch):
        return
    for work in _pending(bucket):
        draw = Draw(launch.seed, work.row.step, work.entry.number)
        _apply_(work, bucket.key.mode, draw)
    bucket.scratch = None


def _work(bucket, entry) -> _Work:
    ndim = entry.grad.dim()
    tensors = [_as_matrices(t, ndim) for t in (entry.param, entry.grad, entry.exp_avg, entry.extra)]
    batch, rows, cols = tensors[1].shape
    if entry.max_exp_avg_sq is None:  # not factored: the total alone
        rows = cols = 0
    sums = [
        torch.zeros(shape, dtype=torch.float64, device=bucket.key.device)
        for shape in ((batch, rows), (batch, cols), (), (), ())
    ]
    return _Work(entry, bucket.rows[entry.row], *tensors, *sums)


def _pending(bucket) -> list[_Work]:
    return [work for work in bucket.scratch if work.grad.numel() > 0]


def _math_dtype(bucket) -> torch.dtype:
    return torch.float64 if bucket.key.dtype is torch.float64 else torch.float32


def _as_matrices(tensor: torch.Tensor | None, ndim: int) -> torch.Tensor | None:
    """Return ``tensor`` as [batch, rows, cols], a copy where its strides leave no choice."""
    if tensor is None:
        return None
    if ndim < 2:
        return tensor.reshape(1, 1, -1)
    return tensor.reshape(tensor.shape[:-2].numel(), *tensor.shape[-2:])


def _tiles(matrices: torch.Tensor) -> Iterator[tuple[int, Tile]]:
    """Yield (first element, index) of tiles of [batch, rows, cols], consecutive in memory.

    A tile is several whole matrices, or several rows of one, or a part of one long row.
    """
    batch, rows, cols = matrices.shape
    limit = block_size(matrices.device)
    b_step = max(1, limit // (rows * cols))
    r_step = min(rows, max(1, limit // cols))
    c_step = min(cols, limit)
    for b in range(0, batch, b_step):
        for r in range(0, rows, r_step):
            for c in range(0, cols, c_step):
                first = (b * rows + r) * cols + c
                yield first, (slice(b, b + b_step), slice(r, r + r_step), slice(c, c + c_step))


def _finalise_factored_(work: _Work, clip_square) -> tuple[torch.Tensor, torch.Tensor]:
    row, (batch, rows, cols) = work.row, work.grad.shape
    row_var = work.entry.exp_avg_sq.view(batch, rows)
    col_var = work.entry.max_exp_avg_sq.view(batch, cols)
    for var, total, count in ((row_var, work.row_sum, cols), (col_var, work.col_sum, rows)):
        mean = (total * clip_square / count).add_(row.eps_grad).to(var.dtype)
        var.mul_(row.b2).add_(mean.mul_(row.omb2))  # [F3]
    row_mean = row_var.mean(-1, keepdim=True).clamp(min=row.mean_floor)
    return (row_var / row_mean).rsqrt().unsqueeze(-1), col_var.rsqrt().unsqueeze(-2)  # [F4]


def _finalise_unfactored_(work: _Work) -> torch.Tensor:
    row, v = work.row, work.entry.exp_avg_sq.view(1, 1, -1)
    for _, at in _tiles(work.grad):
        g_square = work.prepare(work.grad[at]).square()
        v[at].mul_(row.b2).add_(g_square.add_(row.eps_grad).mul_(row.omb2))  # [F3]
    return v


def _alpha(work: _Work) -> torch.Tensor:
    """[F5] Return the step size before clipping; writes the entry's RMS where it keeps one."""
    dtype, row = work.entry.exp_avg_sq.dtype, work.row
    if not row.flags & _SCALE_PARAMETER:
        return torch.full((), row.rho, dtype=dtype, device=work.grad.device)
    rms = (work.p_sum / work.grad.numel()).sqrt().to(dtype)
    if work.entry.rms is not None:
        work.entry.rms.copy_(rms)
    return torch.fmax(rms, torch.full_like(rms, row.eps_rms)) * row.rho


def _update(work: _Work, at: Tile) -> tuple[torch.Tensor, torch.Tensor | float]:
    """[F6] Return the unscaled update of one tile as a fresh tensor and what to multiply it with.

    The second factor is r of F4, ``[batch, rows, 1]``, where nothing but a product is asked for:
    it is cheaper to apply per row.
    """
    b, r, c = at
    g = work.prepare(work.grad[at])
    if work.factored and work.row.update_cap == torch.inf:
        return g * work.factors[1][b, :, c], work.factors[0][b, r]
    if work.factored:
        multiplier = work.factors[0][b, r] * work.factors[1][b, :, c]
    else:
        multiplier = work.factors[0][at].rsqrt()
    return multiplier.clamp_(max=work.row.update_cap).mul_(g), 1.0


def scale_and_alpha(work: _Work) -> tuple[torch.Tensor, torch.Tensor]:
    """[F7] Return (what the update is multiplied with, alpha)."""
    alpha, row = work.alpha, work.row
    if row.flags & _HOLD_IF_ZERO:
        alpha = torch.where(work.u_sum == 0, 0.0, alpha)
    ratio = (work.u_sum / work.grad.numel()).sqrt().to(alpha.dtype) / row.clip_threshold
    if row.flags & _CLIP_IGNORES_NAN:
        ratio = torch.where(ratio.isnan(), 1.0, ratio)
    return alpha / ratio.clamp(min=1.0), alpha


def scaled_updates(work: _Work) -> Iterator[tuple[int, Tile, torch.Tensor]]:
    """Yield (first element, tile, what is subtracted there, the new moment where there is one)."""
    row, (scale, _) = work.row, scale_and_alpha(work)
    for first, at in _tiles(work.param):
        u, by_row = _update(work, at)
        u.mul_(scale * by_row)  # [F8]
        if work.exp_avg is not None:
            u = work.exp_avg[at].to(u.dtype).mul(row.b1).add_(u, alpha=row.omb1)
        yield first, at, u


def decay_factor(work: _Work) -> torch.Tensor | float:
    """[F9] Return what the parameter is multiplied with before the update."""
    decay = work.row.decay_before
    if work.row.decay_alpha != 0.0:
        decay = (1.0 - scale_and_alpha(work)[1] * work.row.decay_alpha) * decay
    return decay


def _apply_(work: _Work, mode: str, draw: Draw) -> None:
    decay = decay_factor(work)
    for first, at, u in scaled_updates(work):
        if work.exp_avg is not None:
            store_moment_(work.exp_avg[at], u, rounding.MOMENT_STREAMS[0], draw, first)
        param, extra = work.param[at], None if work.extra is None else work.extra[at]
        value = decode(param, extra, mode)
        if isinstance(decay, torch.Tensor) or decay != 1.0:
            value.mul_(decay)  # [F9]
        value.sub_(u.add(0.0))  # [F10]
        encode_(param, extra, value, mode, draw, first)
    entry = work.entry
    for original, matrices in (
        (entry.param, work.param),
        (entry.exp_avg, work.exp_avg),
        (entry.extra, work.extra),
    ):
        if original is not None and original.data_ptr() != matrices.data_ptr():
            original.copy_(matrices.view(original.shape))
