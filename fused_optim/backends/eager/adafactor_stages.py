"""The stages of an Adafactor step, F1 to F10, each over a list of tensors of one bucket."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fused_optim.precision import moments
from fused_optim.precision.encoding import decode, encode_
from fused_optim.precision.modes import is_packed

from .adafactor_work import Update, Work, zeros
from .gradients import preparation
from .tiles import Tile, part

_SCALE_PARAMETER, _HOLD_IF_ZERO, _CLIP_IGNORES_NAN = 1, 2, 4


def sum_squares(works: list[Work], gradients: bool = False) -> list[torch.Tensor]:
    """[F1, F2] Sum the squares that the step needs; with ``gradients``, return each total too."""
    totals = []
    for work in works:
        total = None
        for _, at in work.tiles:
            if work.factored or gradients:
                g_square = work.prepare(part(work.grad, at)).square()
            if work.factored:
                _add_lines(work, g_square, at)  # [F1]
            elif gradients:
                total = _plus(total, g_square.sum())
            if work.row.flags & _SCALE_PARAMETER:
                value = decode(part(work.param, at), part(work.extra, at), work.mode)
                work.p_sum = _plus(work.p_sum, value.square().sum())  # [F2]
        if gradients:
            totals.append(_total(work) if total is None else total)
        if work.split:
            _complete(work)
    return totals


def finalise_(works: list[Work], launch) -> None:
    """[F3 to F5] Advance the statistics; find the step sizes before the updates are clipped."""
    for work in works:
        clip_square = 1.0
        if launch.clip is not None:
            work.prepare = preparation(work.row, launch, work.dtype, work.index)
            clip = launch.clip[work.index] if launch.clip_per_tensor else launch.clip
            clip_square = clip.double().square()
        if work.factored:
            work.factors = _finalise_factored_(work, clip_square)
        else:
            work.factors = (_finalise_unfactored_(work),)
    for row, group in _by_row(works):
        _find_alphas_(row, group)


def sum_updates(works: list[Work], keep: bool = False) -> None:
    """[F6] Sum the squares of the updates; ``keep`` those of tensors that are one tile."""
    for work in works:
        for _, at in work.tiles:
            u, by_row = update = _update(work, at)
            if keep:
                work.update = update
            row_sums = (u.square() if keep else u.square_()).sum(-1, keepdim=True).double()
            if isinstance(by_row, torch.Tensor):
                row_sums.mul_(by_row).mul_(by_row)
            work.u_sum = _plus(work.u_sum, row_sums.sum())
        if work.u_sum is None:  # an empty part of a tensor
            work.u_sum = zeros(work)


def scale(works: list[Work]) -> None:
    """[F7] Find the factors of the updates."""
    for row, group in _by_row(works):
        alphas = torch.stack([work.alpha for work in group])
        mean = torch.stack([work.u_sum / work.whole[0] for work in group])
        if row.flags & _HOLD_IF_ZERO:
            alphas = torch.where(mean == 0, 0.0, alphas)
        ratios = mean.sqrt_().to(alphas.dtype) / row.clip_threshold
        if row.flags & _CLIP_IGNORES_NAN:
            ratios = torch.where(ratios.isnan(), 1.0, ratios)
        scales = alphas / ratios.clamp_(min=1.0)
        for work, alpha, one in zip(group, alphas.unbind(), scales.unbind(), strict=True):
            work.alpha, work.scale = alpha, one


def scaled_updates(work: Work) -> Iterator[tuple[int, Tile, torch.Tensor]]:
    """Yield (first element, tile, the amount to subtract there, the new moment or None)."""
    row = work.row
    for first, at in work.tiles:
        u, by_row = work.update or _update(work, at)
        work.update = None
        u.mul_(work.scale * by_row)  # [F8]
        if work.exp_avg is not None:
            held = moments.load(*_first_moment(work, at), first, u)[0]
            u = held.mul(row.b1).add_(u, alpha=row.omb1)
        yield first, at, u


def _first_moment(work: Work, at: Tile) -> tuple[moments.Tensors, moments.Tensors]:
    """Return the first moment, and the tile of it if it has the parameter's shape."""
    beside = None if is_packed(work.exp_avg) else part(work.exp_avg, at)
    return (work.exp_avg, None, None), (beside, None, None)


def decay_factor(work: Work) -> torch.Tensor | float:
    """[F9] Return the factor of the parameter before the update."""
    decay = work.row.decay_before
    if work.row.decay_alpha != 0.0:
        decay = (1.0 - work.alpha * work.row.decay_alpha) * decay
    return decay


def apply_(works: list[Work]) -> None:
    """[F8 to F10] Write the parameters and the first moments."""
    for work in works:
        decay = decay_factor(work)
        for first, at, u in scaled_updates(work):
            if work.exp_avg is not None:
                moments.store(*_first_moment(work, at), (u, None, None), first, work.draw)
            param, extra = part(work.param, at), part(work.extra, at)
            value = decode(param, extra, work.mode)
            if isinstance(decay, torch.Tensor) or decay != 1.0:
                value.mul_(decay)  # [F9]
            value.sub_(u.add_(0.0))  # [F10]
            encode_(param, extra, value, work.mode, work.draw, first)
        for name in ("param", "exp_avg", "extra"):
            original, matrices = getattr(work.entry, name), getattr(work, name)
            if original is not None and original.data_ptr() != matrices.data_ptr():
                original.copy_(matrices.view(original.shape))


def _plus(total: torch.Tensor | None, addend: torch.Tensor) -> torch.Tensor:
    """Return ``total + addend`` in float64; ``total`` is None at first."""
    return addend.double() if total is None else total.add_(addend)


def _complete(work: Work) -> None:
    """Give a part of a tensor the sums that go to other processes, zeros where it is empty."""
    batch, rows, cols = work.grad.shape
    if work.p_sum is None:
        work.p_sum = zeros(work)
    if not work.factored:
        return
    if work.row_sum is None:
        work.row_sum, work.col_sum = zeros(work, batch, rows), zeros(work, batch, cols)
    work.total = work.row_sum.sum(-1) / work.whole[2]
    work.old = work.entry.exp_avg_sq.view(batch, rows).double().sum(-1)


def _total(work: Work) -> torch.Tensor:
    """Return a gradient's float64 sum of squares, from the sums of its rows; 0 if it is empty."""
    if work.row_sum is not None:
        return work.row_sum.sum()
    return torch.zeros((), dtype=torch.float64, device=work.grad.device)


def _add_lines(work: Work, g_square: torch.Tensor, at: Tile) -> None:
    rows, cols = g_square.sum(-1), g_square.sum(-2)
    if at is None:
        work.row_sum, work.col_sum = rows.double(), cols.double()
        return
    if work.row_sum is None:
        batch, height, width = work.grad.shape
        work.row_sum, work.col_sum = zeros(work, batch, height), zeros(work, batch, width)
    b, r, c = at
    work.row_sum[b, r] += rows
    work.col_sum[b, c] += cols


def _by_row(works: list[Work]) -> Iterator[tuple[object, list[Work]]]:
    """Yield each row, with the works that it belongs to."""
    by_row: dict[int, list[Work]] = {}
    for work in works:
        by_row.setdefault(work.entry.row, []).append(work)
    for group in by_row.values():
        yield group[0].row, group


def _finalise_factored_(work: Work, clip_square) -> tuple[torch.Tensor, torch.Tensor]:
    row, (batch, height, width) = work.row, work.grad.shape
    _, rows, cols = work.whole
    row_var = work.entry.exp_avg_sq.view(batch, height)
    col_var = work.entry.max_exp_avg_sq.view(batch, width)
    for var, total, count in ((row_var, work.row_sum, cols), (col_var, work.col_sum, rows)):
        mean = (total * clip_square / count).add_(row.eps_grad).to(var.dtype)
        var.mul_(row.b2).add_(mean.mul_(row.omb2))  # [F3]
    if work.total is None:
        row_mean = row_var.mean(-1, keepdim=True)
    else:  # of the new statistics, by the sums of both of their terms
        mean = (work.total * clip_square / rows).add_(row.eps_grad).mul_(row.omb2)
        row_mean = mean.add_(work.old / rows * row.b2).unsqueeze(-1).to(row_var.dtype)
    row_mean = row_mean.clamp(min=row.mean_floor)
    return (row_var / row_mean).rsqrt().unsqueeze(-1), col_var.rsqrt().unsqueeze(-2)  # [F4]


def _finalise_unfactored_(work: Work) -> torch.Tensor:
    row, held = work.row, (None, work.entry.exp_avg_sq, None)
    packed = is_packed(held[1])
    v = moments.load(held, (None, None, None), 0, work.param)[1] if packed else held[1]
    v = v.view(1, 1, -1)
    eps = torch.full((), row.eps_grad, dtype=v.dtype, device=v.device)
    for _, at in work.tiles:
        g = work.prepare(part(work.grad, at))
        part(v, at).mul_(row.b2).add_(torch.addcmul(eps, g, g), alpha=row.omb2)  # [F3]
    if packed:
        moments.store(held, (None, None, None), (None, v, None), 0, work.draw)
    return v


def _find_alphas_(row, works: list[Work]) -> None:
    """[F5] Find the step sizes before clipping; write the RMS of entries that keep one."""
    dtype, device = works[0].dtype, works[0].grad.device
    if row.flags & _SCALE_PARAMETER:
        mean = torch.stack([work.p_sum / work.whole[0] for work in works])
        rms = mean.sqrt_().to(dtype)
        for work, one in zip(works, rms.unbind(), strict=True):
            if work.entry.rms is not None:
                work.entry.rms.copy_(one)
        alphas = torch.fmax(rms, torch.full_like(rms, row.eps_rms)) * row.rho
    else:
        alphas = torch.full((len(works),), row.rho, dtype=dtype, device=device)
    for work, alpha in zip(works, alphas.unbind(), strict=True):
        work.alpha = alpha


def _update(work: Work, at: Tile) -> Update:
    """[F6] Return the unscaled update of one tile as a fresh tensor and what to multiply it with.

    The second factor is r of F4, ``[batch, rows, 1]``, wherever a product is enough: a factor of
    each matrix row is cheaper to apply later.
    """
    g, cap = work.prepare(part(work.grad, at)), work.row.update_cap
    if work.factored:
        b, r, c = at or (slice(None),) * 3
        by_row, by_col = work.factors[0][b, r], work.factors[1][b, :, c]
        if cap == torch.inf:
            return g * by_col, by_row
        multiplier = by_row * by_col
    else:
        multiplier = part(work.factors[0], at).rsqrt()
    if cap != torch.inf:
        multiplier.clamp_(max=cap)
    return multiplier.mul_(g), 1.0
