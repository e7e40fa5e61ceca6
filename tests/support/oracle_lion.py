"""Lion in float64, as its paper defines it.

Source: Chen et al., "Symbolic Discovery of Optimization Algorithms" (arXiv 2302.06675), algorithm
2, with the learning rate times the weight decay, as in its program 1.
"""

from __future__ import annotations

import numpy as np
from oracle_adamw import Array, Details, State


@np.errstate(all="ignore")
def lion(
    p: Array,
    g: Array,
    state: State,
    t: int,
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    maximize: bool = False,
    details: Details | None = None,
) -> tuple[Array, State]:
    """Return the parameter and the momentum after a step; an empty ``state`` stands for zeros.

    Args:
        p: the parameter, any shape. Never modified, nor are ``g`` and ``state``.
        g: its gradient.
        state: ``exp_avg``.
        t: the step count after this step, which nothing depends on.
        lr: the learning rate of this step.
        betas: the momentum's share of the update's direction, and of the next momentum.
        weight_decay: decoupled.
        maximize: ascend.
        details: if given, filled with the sizes that ``tolerances`` measures rounding errors by,
            from absolute values: ``exp_avg`` and ``update``. Where the direction is so close to 0
            that rounding to float32 may turn it, ``update`` is large enough for either sign.
    """
    p, g = np.asarray(p, np.float64), np.asarray(g, np.float64)
    m = np.asarray(state.get("exp_avg", np.zeros_like(p)))
    g = -g if maximize else g
    beta1, beta2 = betas
    direction = beta1 * m + (1 - beta1) * g
    size = beta1 * np.abs(m) + (1 - beta1) * np.abs(g)
    new = np.asarray(beta2 * m + (1 - beta2) * g)
    moved = p - lr * (np.sign(direction) + weight_decay * p)
    if details is not None:
        turns = np.abs(direction) < 2.0**-22 * size
        details["update"] = np.where(turns, 2.0**22 * lr, lr)
        details["exp_avg"] = beta2 * np.abs(m) + (1 - beta2) * np.abs(g)
    return np.asarray(moved), {"exp_avg": new}
