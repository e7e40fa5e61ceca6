"""Lion, as its paper defines it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch

from fused_optim import precision
from fused_optim.ops import LionRow
from fused_optim.optimizers import validation
from fused_optim.optimizers.base import CommonOptions, FusedOptimizer
from fused_optim.optimizers.scalars import number, sign
from fused_optim.precision.state import StateTensor

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Lion(FusedOptimizer):
    r"""Lion, fused, for parameters of any precision: the sign of a momentum is the update.

    For each parameter :math:`p` with gradient :math:`g`:

    .. math::
        u &= \beta_1 m + (1-\beta_1) g \\
        p &= p - \mathrm{lr} \cdot \mathrm{weight\_decay} \cdot p - \mathrm{lr} \cdot
        \mathrm{sign}(u) \\
        m &= \beta_2 m + (1-\beta_2) g

    Every element moves by ``lr`` a step, whatever its gradient, so the rate is 3 to 10 times
    smaller than AdamW's and the decay as many times larger. An element of a 16-bit parameter whose
    spacing is more than twice ``lr`` moves in the modes that keep its float32 value or round at
    random, and stands still in ``nearest``. An element with ``u = 0`` decays and does not move;
    one with a NaN becomes NaN.

    Memory: 4 bytes per parameter of state with the default float32 momentum, 2 with
    ``state_dtype=torch.bfloat16`` or ``torch.float16``; 2 more for a bfloat16 parameter (its
    remainder) and 4 for a float16 one (its master) with the default ``low_precision``.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate, at least 0.
        betas: how much of the momentum the update takes, and how much the momentum keeps, each in
            [0, 1).
        weight_decay: decoupled, times lr, at least 0.
        **common: ``backend``, ``low_precision``, ``state_dtype``, ``maximize``, ``capturable``,
            ``max_grad_norm`` and ``seed``; see `fused_optim.optimizers.base.FusedOptimizer`.

    Raises:
        ValueError: a hyperparameter is out of range, or a parameter can't be optimized.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = Lion(model.parameters(), lr=1e-4, weight_decay=0.1)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()

    Source: Chen et al., Symbolic Discovery of Optimization Algorithms, 2023, algorithm 2.
    """

    _family = "lion"
    _foreign = ("exp_avg_sq",)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, defaults, **common)

    def _check_group(self, group: dict[str, Any]) -> None:
        validation.check_number(group["lr"], "learning rate", low=0.0)
        validation.check_betas(group["betas"])
        validation.check_number(group["weight_decay"], "weight_decay", low=0.0)
        if group["state_dtype"] == "int8":
            raise ValueError(
                "Invalid state_dtype: 'int8' - Lion goes by the sign of its momentum, which codes "
                "of 8 bits lose where it is small; use torch.bfloat16 (2 bytes per parameter)"
            )

    def _state_spec(self, group: dict[str, Any], param: torch.Tensor) -> tuple[StateTensor, ...]:
        first, _ = precision.resolve_state_dtype(group["state_dtype"], param.dtype)
        return (StateTensor("exp_avg", "exp_avg", first),)

    def _row(self, group: dict[str, Any], step: int | torch.Tensor, variant: Hashable) -> LionRow:
        values = (group["lr"], *group["betas"], group["weight_decay"])
        lr, beta1, beta2, weight_decay = (number(value, step) for value in values)
        return LionRow(
            grad_mul=sign(group),
            decay_before=1.0 - lr * weight_decay,
            b1=beta1,
            omb1=1.0 - beta1,
            b2=beta2,
            omb2=1.0 - beta2,
            step_size=lr,
            step=step,
        )
