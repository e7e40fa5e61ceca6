"""AdamW in float64, as transformers, torch and TensorFlow define it.

Sources: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (arXiv 1412.6980), algorithm 1
and the reordered form at the end of its section 2; Reddi et al., "On the Convergence of Adam and
Beyond" (arXiv 1904.09237), algorithm 2, for amsgrad; Loshchilov and Hutter, "Decoupled Weight Decay
Regularization" (arXiv 1711.05101), algorithm 2. Where the peers part ways is said at each function.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = dict[str, Array]
Details = dict[str, Array]


@np.errstate(all="ignore")
def adamw(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    l2: float = 0.0,
    decay_before: float = 0.0,
    decay_after: float = 0.0,
    correct_bias: bool = True,
    eps_hat: bool = True,
    amsgrad: bool = False,
    maximize: bool = False,
    details: Details | None = None,
) -> tuple[Array, State]:
    """Return the parameter and state after step ``t`` (1 for the first) of the general rule.

    With ``eps_hat`` the bias corrections are folded into the step size and eps joins the raw root,
    as in the end of the Adam paper's section 2; otherwise eps joins the corrected root, as in its
    algorithm 1. ``decay_before`` and ``decay_after`` are the fractions of the parameter taken away
    on either side of the Adam update. An empty ``state`` stands for zeros.

    Args:
        p: the parameter, any shape. Never modified, nor are ``g`` and ``state``.
        g: its gradient.
        state: ``exp_avg``, ``exp_avg_sq`` and, with ``amsgrad``, ``max_exp_avg_sq``.
        t: the step count after this step.
        lr: the learning rate of this step.
        betas: decay rates of the two moments.
        eps: the denominator's constant.
        l2: weight decay that is added to the gradient.
        decay_before: ``p *= 1 - decay_before`` ahead of the update.
        decay_after: ``p *= 1 - decay_after`` behind it.
        correct_bias: whether the moments' start at zero is corrected for.
        eps_hat: which of the paper's two denominators.
        amsgrad: divide by the root of the running maximum of ``exp_avg_sq``.
        maximize: ascend.
        details: if given, filled with the sizes that ``tolerances`` measures rounding errors by:
            ``update`` and one per moment, all computed from absolute values, that is, without the
            cancellation that would make a relative error meaningless.
    """
    p, g = np.asarray(p, np.float64), np.asarray(g, np.float64)
    beta1, beta2 = betas
    m, v = (np.asarray(state.get(key, np.zeros_like(p))) for key in ("exp_avg", "exp_avg_sq"))
    g = -g if maximize else g
    g_size = np.abs(g)
    if l2 != 0:  # never 0 * p, which would be NaN where p is infinite
        g, g_size = g + l2 * p, g_size + np.abs(l2 * p)
    m_size = beta1 * np.abs(m) + (1 - beta1) * g_size
    v_size = beta2 * v + (1 - beta2) * g_size**2

    p = p * (1 - decay_before)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    new_state = {"exp_avg": np.asarray(m), "exp_avg_sq": np.asarray(v)}
    sizes = {"exp_avg": m_size, "exp_avg_sq": v_size}
    # An error of v relative to v_size is one of v_size / v relative to v.
    update_size = np.maximum(m_size, np.abs(m) * np.where(v > 0, v_size / v, 1.0))
    if amsgrad:
        v_max = state.get("max_exp_avg_sq", np.zeros_like(p))
        v = np.maximum(v_max, v)
        new_state["max_exp_avg_sq"] = np.asarray(v)
        sizes["max_exp_avg_sq"] = np.maximum(v_max, v_size)

    correction1 = 1 - beta1**t if correct_bias else 1.0
    correction2 = 1 - beta2**t if correct_bias else 1.0
    if eps_hat:
        step_size = lr * np.sqrt(correction2) / correction1
        denominator = np.sqrt(v) + eps
    else:
        step_size = lr / correction1
        denominator = np.sqrt(v / correction2) + eps
    p = (p - step_size * m / denominator) * (1 - decay_after)
    if details is not None:
        details.update(sizes, update=np.asarray(np.abs(step_size) * update_size / denominator))
    return np.asarray(p), new_state


def adamw_transformers(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    correct_bias: bool = True,
    maximize: bool = False,
    details: Details | None = None,
) -> tuple[Array, State]:
    """transformers.AdamW: eps beside the raw root, then ``p -= lr * weight_decay * p``.

    The decay acts on the updated parameter, at the plain learning rate, and only where it is
    positive: a negative one is ignored. Without ``correct_bias`` the step size is ``lr`` itself.
    """
    decay = lr * weight_decay if weight_decay > 0 else 0.0
    return adamw(
        p,
        g,
        state,
        t,
        lr=lr,
        betas=betas,
        eps=eps,
        decay_after=decay,
        correct_bias=correct_bias,
        maximize=maximize,
        details=details,
    )


def adamw_torch(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    maximize: bool = False,
    details: Details | None = None,
) -> tuple[Array, State]:
    """torch.optim.AdamW: the parameter decays first, and eps joins the corrected root.

    amsgrad keeps the maximum of the raw ``exp_avg_sq`` and corrects it by this step's factor.
    """
    return adamw(
        p,
        g,
        state,
        t,
        lr=lr,
        betas=betas,
        eps=eps,
        decay_before=lr * weight_decay,
        eps_hat=False,
        amsgrad=amsgrad,
        maximize=maximize,
        details=details,
    )


def adam_torch(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    details: Details | None = None,
) -> tuple[Array, State]:
    """torch.optim.Adam: as `adamw_torch`, but the decay is an L2 term of the gradient.

    With ``maximize`` the gradient changes its sign before the L2 term is added.
    """
    return adamw(
        p,
        g,
        state,
        t,
        lr=lr,
        betas=betas,
        eps=eps,
        l2=weight_decay,
        eps_hat=False,
        amsgrad=amsgrad,
        maximize=maximize,
        details=details,
    )


def adam_weight_decay_tf(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    learning_rate: float | Callable[[int], float] = 1e-3,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    amsgrad: bool = False,
    weight_decay_rate: float = 0.0,
    decay: float = 0.0,
    maximize: bool = False,
    details: Details | None = None,
) -> tuple[Array, State]:
    """The TensorFlow AdamWeightDecay: decays at this step's rate first, eps beside the raw root.

    A callable learning rate is evaluated at ``t - 1``, TensorFlow's count of finished steps, which
    also drives ``decay``: ``lr / (1 + decay * (t - 1))``. An epsilon of 0 means Keras's default,
    1e-7. amsgrad compares raw second moments. Pass ``weight_decay_rate=0`` for a parameter that
    its name excludes.
    """
    lr = learning_rate(t - 1) if callable(learning_rate) else learning_rate
    lr = lr / (1 + decay * (t - 1))
    return adamw(
        p,
        g,
        state,
        t,
        lr=lr,
        betas=(beta_1, beta_2),
        eps=epsilon or 1e-7,
        decay_before=lr * weight_decay_rate,
        amsgrad=amsgrad,
        maximize=maximize,
        details=details,
    )
