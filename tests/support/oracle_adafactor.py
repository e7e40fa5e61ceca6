"""Adafactor in float64, as transformers and torch define it.

Source: Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost" (arXiv
1804.04235), algorithms 4 to 6. Both peers keep the means of squared rows and columns where the
paper keeps their sums, which leaves the estimate R C / mean(R) the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = dict[str, Array]
Details = dict[str, Array]


def _mean(x: Array, axis: int) -> Array:
    """Mean along ``axis``, kept; NaN without a warning where that dimension is empty."""
    return np.sum(x, axis=axis, keepdims=True) / np.float64(x.shape[axis])


def _rms(x: Array) -> float:
    return float(np.sqrt(np.sum(x * x)) / np.sqrt(np.float64(x.size)))


def relative_step_size(t: int, *, warmup_init: bool = False) -> float:
    """The paper's rho_t: min(1e-2, 1/sqrt(t)), where warm-up replaces 1e-2 by 1e-6 t."""
    return min(1e-6 * t if warmup_init else 1e-2, 1.0 / np.sqrt(t))


@np.errstate(all="ignore")
def adafactor_alpha(
    p: Array,
    t: int,
    *,
    lr: float | None = None,
    eps: tuple[float, float] = (1e-30, 1e-3),
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
) -> float:
    """Return alpha_t of transformers.Adafactor (algorithm 5, line 4), from ``p`` before the step.

    Python's ``max`` picks eps2 when the RMS is NaN, as it is for an empty tensor.
    """
    rho = relative_step_size(t, warmup_init=warmup_init) if relative_step else lr
    assert rho is not None, "lr is needed where relative_step is off"
    return rho * (max(eps[1], _rms(np.asarray(p, np.float64))) if scale_parameter else 1.0)


@np.errstate(all="ignore")
def adafactor(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float | None = None,
    eps: tuple[float, float] = (1e-30, 1e-3),
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    beta1: float | None = None,
    weight_decay: float = 0.0,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
    maximize: bool = False,
    details: Details | None = None,
) -> tuple[Array, State]:
    """Return the parameter and state after step ``t`` of transformers.Adafactor.

    A gradient of two or more dimensions is factored over its last two, whatever their sizes; the
    leading ones are a batch, each with its own statistics, but the clip and both RMS take the
    whole tensor. eps1 is added to every squared gradient. Momentum averages the clipped update
    after alpha has scaled it. The decay, ``weight_decay * alpha * p``, comes before the update.

    Args:
        p: the parameter, any shape, possibly empty. Never modified, nor are ``g`` and ``state``.
        g: its gradient.
        state: ``exp_avg_sq_row`` and ``exp_avg_sq_col``, or ``exp_avg_sq``; ``exp_avg`` with
            ``beta1``; ``RMS``. Empty stands for zeros.
        t: the step count after this step.
        lr: the step size where ``relative_step`` is off.
        eps: (eps1, eps2), added to squared gradients and the floor of the parameter's RMS.
        clip_threshold: d, the largest RMS of an update.
        decay_rate: beta2 is ``1 - t ** decay_rate``.
        beta1: decay rate of the momentum, None for none; 0.0 keeps a state all the same.
        weight_decay: fraction of the parameter, times alpha, that decays.
        scale_parameter: whether alpha is multiplied by the parameter's RMS.
        relative_step: whether rho follows `relative_step_size`.
        warmup_init: whether that ramps up from zero.
        maximize: ascend.
        details: if given, filled with the sizes rounding errors are measured by: ``update`` and,
            with ``beta1``, ``exp_avg``, free of cancellation.
    """
    p, g = np.asarray(p, np.float64), np.asarray(g, np.float64)
    g = -g if maximize else g
    alpha = adafactor_alpha(
        p,
        t,
        lr=lr,
        eps=eps,
        scale_parameter=scale_parameter,
        relative_step=relative_step,
        warmup_init=warmup_init,
    )
    new_state: State = {"RMS": np.asarray(_rms(p))}
    beta2 = 1.0 - float(t) ** decay_rate
    squared = g * g + eps[0]
    if g.ndim >= 2:
        row = beta2 * _stat(state, "exp_avg_sq_row", g.shape[:-1])[..., None]
        row = row + (1 - beta2) * _mean(squared, -1)  # [..., n, 1]
        col = beta2 * _stat(state, "exp_avg_sq_col", g.shape[:-2] + g.shape[-1:])[..., None, :]
        col = col + (1 - beta2) * _mean(squared, -2)  # [..., 1, m]
        new_state |= {"exp_avg_sq_row": row[..., 0], "exp_avg_sq_col": col[..., 0, :]}
        u = g / np.sqrt(row / _mean(row, -2)) / np.sqrt(col)
    else:
        v = beta2 * _stat(state, "exp_avg_sq", g.shape) + (1 - beta2) * squared
        new_state["exp_avg_sq"] = np.asarray(v)
        u = g / np.sqrt(v)
    u = u / np.maximum(1.0, _rms(u) / np.float64(clip_threshold)) * alpha

    size = np.abs(u)
    if beta1 is not None:
        m = _stat(state, "exp_avg", g.shape)
        size = beta1 * np.abs(m) + (1 - beta1) * size
        u = beta1 * m + (1 - beta1) * u
        new_state["exp_avg"] = np.asarray(u)
    if details is not None:
        details.update(update=np.asarray(size), exp_avg=np.asarray(size))
    p = p - weight_decay * alpha * p if weight_decay != 0 else p
    return np.asarray(p - u), new_state


@np.errstate(all="ignore")
def adafactor_torch(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    eps: tuple[float, float] = (float(np.finfo(np.float64).eps), 1e-3),
    d: float = 1.0,
    weight_decay: float = 0.0,
    maximize: bool = False,
    details: Details | None = None,
) -> tuple[Array, State]:
    """Return the parameter and state after step ``t`` of torch.optim.Adafactor (2.13).

    Differs from `adafactor` in eps1, which is not added to the squared gradient but is the floor of
    mean(R) and, squared, of the estimate; in the decay, ``lr * weight_decay * p`` ahead of
    everything but the parameter's RMS; and in the shapes of its state: ``row_var`` [..., n, 1] and
    ``col_var`` [..., 1, m], or ``variance``. Where the optimizer is given eps1 = None, pass the
    ``finfo(dtype).eps`` of the parameter's dtype. A NaN update's RMS does not clip (Python's max).
    """
    p, g = np.asarray(p, np.float64), np.asarray(g, np.float64)
    g = -g if maximize else g
    eps1, eps2 = eps
    alpha = max(eps2, _rms(p)) * min(lr, 1 / np.sqrt(t))
    p = p - lr * weight_decay * p if weight_decay != 0 else p
    weight = float(t) ** beta2_decay
    if g.ndim >= 2:
        row = (1 - weight) * _stat(state, "row_var", (*g.shape[:-1], 1))
        row = row + weight * _mean(g * g, -1)
        col = (1 - weight) * _stat(state, "col_var", (*g.shape[:-2], 1, g.shape[-1]))
        col = col + weight * _mean(g * g, -2)
        new_state = {"row_var": row, "col_var": col}
        estimate = row * col / np.maximum(_mean(row, -2), eps1)
    else:
        estimate = (1 - weight) * _stat(state, "variance", g.shape) + weight * g * g
        new_state = {"variance": np.asarray(estimate)}
    u = g / np.sqrt(np.maximum(estimate, eps1 * eps1))
    u = u * (alpha / max(1.0, _rms(u) / d))
    if details is not None:
        details["update"] = np.asarray(np.abs(u))
    return np.asarray(p - u), new_state


def _stat(state: State, key: str, shape: tuple[int, ...]) -> Array:
    return np.asarray(state[key], np.float64) if key in state else np.zeros(shape)
