"""AdamW with the semantics of ``transformers.AdamW``."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch

from fused_optim import precision
from fused_optim.ops import AdamWRow
from fused_optim.optimizers import adam_scalars, validation
from fused_optim.optimizers.base import CommonOptions, FusedOptimizer
from fused_optim.precision.state import StateTensor, moment

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AdamFamily(FusedOptimizer):
    """The base of every Adam here: it names the update and the state."""

    _family = "adamw"

    def _state_spec(self, group: dict[str, Any], param: torch.Tensor) -> tuple[StateTensor, ...]:
        first, second = precision.resolve_state_dtype(group["state_dtype"], param.dtype)
        spec = (
            moment("exp_avg", "exp_avg", first, param, unit="exp_avg_sq"),
            moment("exp_avg_sq", "exp_avg_sq", second, param),
        )
        if group.get("amsgrad", False):
            key = "max_exp_avg_sq"
            spec += (moment(key, key, second, param, may_begin_late=True),)
        return spec


class AdamW(AdamFamily):
    r"""AdamW as transformers had it until 4.49, fused, for parameters of any precision.

    For each parameter :math:`p` with gradient :math:`g`, at its step :math:`t`:

    .. math::
        m &= \beta_1 m + (1-\beta_1) g \qquad v = \beta_2 v + (1-\beta_2) g^2 \\
        p &= p - \mathrm{lr} \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t} \frac{m}{\sqrt{v} + \epsilon}
        \qquad p = p - \mathrm{lr} \cdot \mathrm{weight\_decay} \cdot p

    Unlike ``torch.optim.AdamW``, decay comes after the update, and ``eps`` is added to the square
    root before its bias correction. For torch's semantics see `fused_optim.torch_compat.AdamW`.

    Memory: 8 bytes per parameter of state with the default float32 moments, 4 with
    ``state_dtype=torch.bfloat16`` and 2.03 with ``state_dtype="int8"``; 2 more for a bfloat16
    parameter (its remainder) and 4 for a float16 one (its master) with the default
    ``low_precision``.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate, at least 0.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: decoupled, times lr. Negative values have no effect, as in transformers.
        correct_bias: False leaves out both bias corrections, as BERT's original optimizer did.
        no_deprecation_warning: accepted for transformers' sake. There is nothing deprecated here,
            so there is no warning either way.
        **common: ``backend``, ``low_precision``, ``state_dtype``, ``maximize``, ``capturable``,
            ``max_grad_norm`` and ``seed``; see `fused_optim.optimizers.base.FusedOptimizer`.

    Raises:
        ValueError: a hyperparameter is out of range, or a parameter can't be optimized.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        no_deprecation_warning: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "correct_bias": correct_bias,
        }
        super().__init__(params, defaults, **common)

    def _check_group(self, group: dict[str, Any]) -> None:
        validation.check_number(group["lr"], "learning rate", low=0.0)
        validation.check_betas(group["betas"])
        validation.check_number(group["eps"], "epsilon value", low=0.0)
        validation.check_number(group["weight_decay"], "weight_decay")
        validation.check_flag(group["correct_bias"], "correct_bias")

    def _row(self, group: dict[str, Any], step: int | torch.Tensor, variant: Hashable) -> AdamWRow:
        return adam_scalars.transformers_row(group, step)

    def _translated_group(self, saved: dict[str, Any]) -> dict[str, Any]:
        # apex calls it bias_correction.
        if "bias_correction" in saved:
            saved["correct_bias"] = bool(saved.pop("bias_correction"))
        if saved.pop("amsgrad", False):
            warnings.warn(
                "the loaded state was trained with amsgrad=True, which fused_optim.AdamW does not "
                "have; use fused_optim.torch_compat.AdamW(amsgrad=True) to continue it",
                stacklevel=4,
            )
        return saved
