"""The bit reference of the elementwise updates: float32 in numpy, one rounded operation at a time.

GPU kernels are held to these bits, on every backend. Numpy's ``+ - * / sqrt`` on float32 arrays are
IEEE 754 operations and separate calls cannot be contracted into a fused multiply-add, so every
intermediate below is rounded exactly once. (The same operations of torch on CPU do not qualify: its
vectorised square root and lerp differ in the last bit.)

How parameters and moments are stored is `reference_storage`'s matter.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import reference_eight_bit
from oracle_random import Random
from oracle_rounding import F32
from reference_storage import State, decode, encode, load_moment, store_moment

SEMANTICS = ("transformers", "torch_adamw", "torch_adam", "tensorflow")
MODES = {
    "float32": ("none",),
    "bfloat16": ("nearest", "stochastic", "kahan", "split", "master"),
    "float16": ("nearest", "stochastic", "kahan", "master"),
}
"""Modes that a parameter of each dtype may train in."""


@dataclass(frozen=True)
class Rounded:
    """The scalars of one step, rounded to float32 so that a row may be written with numbers."""

    def __post_init__(self) -> None:
        """Round all but the step count, which numbers the random bits."""
        with np.errstate(over="ignore"):
            for field in fields(self):
                if field.name != "step":
                    object.__setattr__(self, field.name, np.float32(getattr(self, field.name)))


@dataclass(frozen=True)
class Row(Rounded):
    """AdamW's scalars."""

    grad_mul: np.float32
    clip_value: np.float32
    l2: np.float32
    decay_before: np.float32
    omb1: np.float32
    b2: np.float32
    omb2: np.float32
    step_size: np.float32
    denom_scale: np.float32
    eps: np.float32
    decay_after: np.float32
    step: int = 1


@dataclass(frozen=True)
class LionRow(Rounded):
    """Lion's scalars."""

    grad_mul: np.float32
    clip_value: np.float32
    decay_before: np.float32
    b1: np.float32
    omb1: np.float32
    b2: np.float32
    omb2: np.float32
    step_size: np.float32
    step: int = 1


def reference_row(
    semantics: str,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    step: int,
    *,
    correct_bias: bool = True,
    maximize: bool = False,
    clip_value: float = float("inf"),
) -> Row:
    """Return the row of step ``step`` (1 for the first): doubles throughout, then one rounding.

    Args:
        semantics: one of `SEMANTICS`.
        lr: this step's learning rate, schedules and TensorFlow's ``decay`` applied.
        betas: decay rates of the moments.
        eps: the denominator's constant.
        weight_decay: decoupled, or the L2 coefficient of "torch_adam".
        step: the step count t.
        correct_bias: False for transformers' uncorrected moments.
        maximize: ascend.
        clip_value: largest absolute gradient element.
    """
    assert semantics in SEMANTICS, semantics
    beta1, beta2 = betas
    correction1 = 1.0 - beta1**step if correct_bias else 1.0
    correction2 = 1.0 - beta2**step if correct_bias else 1.0
    torch_like = semantics.startswith("torch")
    decays = weight_decay > 0 if semantics == "transformers" else semantics != "torch_adam"
    decay = 1.0 - lr * weight_decay if decays else 1.0
    return Row(
        grad_mul=-1.0 if maximize else 1.0,
        clip_value=clip_value,
        l2=weight_decay if semantics == "torch_adam" else 0.0,
        decay_before=1.0 if semantics == "transformers" else decay,
        omb1=1.0 - beta1,
        b2=beta2,
        omb2=1.0 - beta2,
        step_size=lr / correction1 if torch_like else lr * correction2**0.5 / correction1,
        denom_scale=1.0 / correction2**0.5 if torch_like else 1.0,
        eps=eps,
        decay_after=decay if semantics == "transformers" else 1.0,
        step=step,
    )


@np.errstate(all="ignore")
def prepare_gradient(
    g: F32, row: Row | LionRow, *, grad_scale: float | None = None, clip_coef: float | None = None
) -> F32:
    """Return the gradient that the update sees: sign and unscaling, then the two clips.

    Args:
        g: the gradient, widened to float32.
        row: the step's scalars.
        grad_scale: a gradient scaler's factor, divided out.
        clip_coef: the coefficient of norm clipping.
    """
    mul = row.grad_mul
    if grad_scale is not None:
        mul = mul * (np.float32(1) / np.float32(grad_scale))
    g = np.asarray(g, np.float32) * mul
    if np.isfinite(row.clip_value):
        g = np.minimum(np.maximum(g, -row.clip_value), row.clip_value)  # both propagate NaN
    if clip_coef is not None:
        g = g * np.float32(clip_coef)
    return g


@np.errstate(all="ignore")
def adamw_update(
    p: F32, g: F32, m: F32, v: F32, vmax: F32 | None, row: Row
) -> tuple[F32, F32, F32, F32 | None]:
    """Return p, m, v and vmax after one step, from a prepared gradient.

    Args:
        p: the parameter's float32 value.
        g: what `prepare_gradient` returned.
        m: first moment.
        v: second moment.
        vmax: its running maximum with amsgrad, else None.
        row: the step's scalars.
    """
    if row.l2 != 0:  # never 0 * p, which would be NaN where p is infinite
        g = g + (row.l2 * p)
    p = p * row.decay_before
    m = m + (row.omb1 * (g - m))
    v = (row.b2 * v) + ((row.omb2 * g) * g)
    s = v
    if vmax is not None:
        s = vmax = np.maximum(vmax, v)
    update = (row.step_size * m) / ((np.sqrt(s) * row.denom_scale) + row.eps)
    p = (p - (update + np.float32(0))) * row.decay_after  # + 0: an update of -0 moves nothing
    for result in (p, m, v, s):
        assert result.dtype == np.float32, "a wider type crept into the reference"
    p, m, v = np.asarray(p), np.asarray(m), np.asarray(v)  # numpy turns 0-d arrays into scalars
    return p, m, v, None if vmax is None else np.asarray(vmax)


@np.errstate(all="ignore")
def lion_update(p: F32, g: F32, m: F32, row: LionRow) -> tuple[F32, F32]:
    """Return p and m after one step, from a prepared gradient."""
    u = (row.b1 * m) + (row.omb1 * g)
    move = row.step_size * np.sign(u)  # numpy's sign of a NaN is NaN
    move = np.where(np.isnan(u), u, move)  # which a step size of 0 has to leave alone
    p = (p * row.decay_before) - (move + np.float32(0))
    m = (row.b2 * m) + (row.omb2 * g)
    for result in (p, m):
        assert result.dtype == np.float32, "a wider type crept into the reference"
    return np.asarray(p), np.asarray(m)


UPDATES = {
    "adamw": (Row, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), adamw_update),
    "lion": (LionRow, ("exp_avg",), lion_update),
}
"""By the name of an elementwise update: its scalars, its moments and its function."""


def adamw_step(p: np.ndarray, g: F32, state: State, row: Row, **how: Any) -> Any:
    """Return what `stored_step` does, for AdamW."""
    return stored_step("adamw", p, g, state, row, **how)


def stored_step(
    name: str,
    p: np.ndarray,
    g: F32,
    state: State,
    row: Row | LionRow,
    *,
    dtype: str = "float32",
    mode: str = "none",
    state_dtype: str = "float32",
    amsgrad: bool = False,
    random: Random | None = None,
    grad_scale: float | None = None,
    clip_coef: float | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the stored parameter and state after one step on them.

    Args:
        name: one of `UPDATES`.
        p: the stored parameter: float32, or uint16 bits of a 16-bit ``dtype``.
        g: the gradient, widened to float32.
        state: ``exp_avg``, ``exp_avg_sq``, with ``amsgrad`` ``max_exp_avg_sq``, as stored, and by
            ``mode`` ``compensation`` (bits), ``remainder`` (int16) or ``master`` (float32). Empty
            before the first step.
        row: the step's scalars.
        dtype: of the parameter.
        mode: one of ``MODES[dtype]``.
        state_dtype: of the moments; "float16" stores ``exp_avg`` alone so, "uint8" is of records.
        amsgrad: keep and use the maximum of the second moments.
        random: source of random bits; its step is replaced by the row's.
        grad_scale: see `prepare_gradient`.
        clip_coef: see `prepare_gradient`.
    """
    assert mode in MODES[dtype], (dtype, mode)
    random = Random(**{**vars(random or Random()), "step": row.step})
    _, keys, update = UPDATES[name]
    if state_dtype == "uint8":
        moments = {key: None for key in keys}
        moments |= reference_eight_bit.load(state, keys, np.shape(p))
    else:
        moments = {key: load_moment(state.get(key), np.shape(p), key, state_dtype) for key in keys}
    if not amsgrad and "max_exp_avg_sq" in moments:
        moments["max_exp_avg_sq"] = None
    x, *new = update(
        decode(p, state, dtype, mode),
        prepare_gradient(g, row, grad_scale=grad_scale, clip_coef=clip_coef),
        *moments.values(),
        row,
    )
    p, extra = encode(x, dtype, mode, random)
    kept = {key: x for key, x in zip(keys, new, strict=True) if x is not None}
    if state_dtype == "uint8":
        return p, extra | reference_eight_bit.store(kept, random)
    return p, extra | {k: store_moment(x, k, state_dtype, random) for k, x in kept.items()}
