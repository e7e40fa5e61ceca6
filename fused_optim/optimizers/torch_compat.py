"""``torch.optim``'s Adam, AdamW and Adafactor: its signatures, defaults and semantics, fused.

They differ from torch in 16-bit parameters. At the same bytes per parameter (6 for AdamW on
bfloat16, the parameter included) moments and parameters are rounded stochastically, so that small
updates are not lost. ``low_precision="nearest"`` rounds as torch does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch

from fused_optim import ops
from fused_optim.ops import AdafactorRow, AdamWRow
from fused_optim.optimizers import adam_scalars, validation
from fused_optim.optimizers.adafactor_family import AdafactorFamily, statistics_dtype, unfactored
from fused_optim.optimizers.adamw import AdamFamily
from fused_optim.optimizers.base import CommonOptions
from fused_optim.optimizers.scalars import minimum, number, sign, sqrt
from fused_optim.precision.state import StateTensor

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Adafactor", "Adam", "AdamW"]


def _torch_footprint(common: dict[str, Any]) -> dict[str, Any]:
    """Return the common options, with defaults that need no more memory than torch's optimizers."""
    return {"low_precision": "stochastic", "state_dtype": None, **common}


class _Adam(AdamFamily):
    """The base of Adam and AdamW, which differ in their weight decay."""

    _group_options = ("maximize", "capturable")
    _shows_torch_steps = True

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        common: CommonOptions,
    ) -> None:
        _check_implementation_flags(type(self).__name__, defaults)
        super().__init__(params, defaults, **_torch_footprint(common))

    def _check_group(self, group: dict[str, Any]) -> None:
        validation.check_number(group["lr"], "learning rate", low=0.0)
        validation.check_betas(group["betas"])
        validation.check_number(group["eps"], "epsilon value", low=0.0)
        validation.check_number(group["weight_decay"], "weight_decay value", low=0.0)
        validation.check_flag(group["amsgrad"], "amsgrad")

    def _row(self, group: dict[str, Any], step: int | torch.Tensor, variant: Hashable) -> AdamWRow:
        return adam_scalars.torch_row(group, step, decoupled=group["decoupled_weight_decay"])

    def _translated_group(self, saved: dict[str, Any]) -> dict[str, Any]:
        # apex calls it bias_correction, fused_optim.AdamW correct_bias.
        flags = [saved.pop(name, True) for name in ("bias_correction", "correct_bias")]
        if not all(flags):
            warnings.warn(
                "the loaded state was trained without bias correction, which torch's Adam always "
                "has; use fused_optim.AdamW(correct_bias=False) to continue it",
                stacklevel=4,
            )
        return saved


class Adam(_Adam):
    r"""``torch.optim.Adam``, fused.

    .. math::
        g = g + \mathrm{weight\_decay}\, p \qquad
        p = p - \mathrm{lr} \frac{m / (1-\beta_1^t)}{\sqrt{v / (1-\beta_2^t)} + \epsilon}

    Memory: as `AdamW` of this module.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate, a float or a tensor of one element.
        betas: decay rates of the two moments, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: L2 penalty, at least 0.
        amsgrad: divide by the maximum of all second moments so far.
        foreach: accepted and without effect, as is ``fused``: every backend is fused.
        maximize: ascend instead of descend.
        capturable: see `fused_optim.optimizers.base.FusedOptimizer`.
        differentiable: only False; the fused step does not record gradients.
        fused: see ``foreach``.
        decoupled_weight_decay: decay as `AdamW` does.
        **common: ``backend``, ``low_precision``, ``state_dtype``, ``max_grad_norm`` and ``seed``;
            see `fused_optim.optimizers.base.FusedOptimizer`. Here ``state_dtype=None`` is the
            default: bfloat16 for 16-bit parameters, float32 for float32.

    Raises:
        ValueError: a hyperparameter is out of range, or a parameter can't be optimized.
        RuntimeError: ``differentiable=True``.

    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015.
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        if isinstance(betas, (tuple, list)) and not capturable:
            betas = tuple(b.item() if isinstance(b, torch.Tensor) else b for b in betas)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(
            params, defaults, {"maximize": maximize, "capturable": capturable, **common}
        )


class AdamW(Adam):
    r"""``torch.optim.AdamW``, fused.

    .. math::
        p = p\,(1 - \mathrm{lr} \cdot \mathrm{weight\_decay}) \qquad
        p = p - \mathrm{lr} \frac{m / (1-\beta_1^t)}{\sqrt{v / (1-\beta_2^t)} + \epsilon}

    Memory, parameter included: 12 bytes per float32 parameter, 6 per 16-bit parameter, as torch;
    unlike torch's, the latter keep learning when updates are small. For float32 quality see
    ``low_precision`` and ``state_dtype``. ``amsgrad`` adds one more moment.

    Args and errors: as `Adam`, with ``weight_decay`` decoupled and times lr.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019.
    """

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            **common,
        )

    def _translated_group(self, saved: dict[str, Any]) -> dict[str, Any]:
        # AdamW stays AdamW whatever it loads, as torch's does.
        return {**super()._translated_group(saved), "decoupled_weight_decay": True}


class Adafactor(AdafactorFamily):
    r"""``torch.optim.Adafactor``, fused, with float32 statistics whatever the parameter's dtype.

    It differs from `fused_optim.Adafactor` in where :math:`\epsilon_1` goes and in weight decay:

    .. math::
        \rho_t &= \min(\mathrm{lr}, 1/\sqrt t) \qquad
        \alpha = \rho_t \max(\epsilon_2, \mathrm{RMS}(p)) \qquad
        p = p\,(1 - \mathrm{lr} \cdot \mathrm{weight\_decay}) \\
        U &= G / \sqrt{\max(R C^\top / \max(\mathrm{mean}(R), \epsilon_1), \epsilon_1^2)} \qquad
        p = p - \alpha\, U / \max(1, \mathrm{RMS}(U) / d)

    Memory: next to nothing for matrices, 4 bytes per element for vectors.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: upper bound of the relative step size, a float or a tensor of one element.
        beta2_decay: exponent of the decay of the statistics, at most 0.
        eps: (:math:`\epsilon_1`, :math:`\epsilon_2`); None for the first means
            ``torch.finfo(p.dtype).eps``, of each parameter's own dtype.
        d: root mean square above which updates are scaled down, at least 1.
        weight_decay: decoupled, times lr, at least 0.
        foreach: accepted and without effect: every backend is fused.
        maximize: ascend instead of descend.
        **common: ``backend``, ``low_precision``, ``capturable``, ``max_grad_norm`` and ``seed``;
            see `fused_optim.optimizers.base.FusedOptimizer`.

    Raises:
        ValueError: a hyperparameter is out of range, or a parameter can't be optimized.

    Source: Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, 2018.
    """

    _group_options = ("maximize",)
    _shows_torch_steps = True
    _aliases = {
        "exp_avg_sq_row": "row_var",
        "exp_avg_sq_col": "col_var",
        "exp_avg_sq": "variance",
    }

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "d": d,
            "weight_decay": weight_decay,
            "foreach": foreach,
        }
        super().__init__(params, defaults, **_torch_footprint({"maximize": maximize, **common}))

    def _check_group(self, group: dict[str, Any]) -> None:
        validation.check_number(group["lr"], "learning rate", low=0.0)
        validation.check_number(group["beta2_decay"], "beta2_decay", high=0.0)
        eps = group["eps"]
        if not isinstance(eps, (tuple, list)) or len(eps) != 2:
            raise ValueError(f"Invalid eps: {eps!r} - should be a pair, the first possibly None")
        if eps[0] is not None:
            validation.check_number(eps[0], "epsilon1", low=0.0)
        validation.check_number(eps[1], "epsilon2", low=0.0)
        validation.check_number(group["d"], "clipping threshold d", low=1.0)
        validation.check_number(group["weight_decay"], "weight_decay", low=0.0)

    def _state_spec(self, group: dict[str, Any], param: torch.Tensor) -> tuple[StateTensor, ...]:
        dtype = statistics_dtype(param)
        if param.dim() < 2:
            return (unfactored("variance", group, param),)
        return (
            StateTensor("row_var", "exp_avg_sq", dtype, "rows_keepdim"),
            StateTensor("col_var", "max_exp_avg_sq", dtype, "cols_keepdim"),
        )

    def _row_variant(self, group: dict[str, Any], index: int, param: torch.Tensor) -> Hashable:
        return param.dtype  # eps[0] may depend on the dtype

    def _row(
        self, group: dict[str, Any], step: int | torch.Tensor, variant: Hashable
    ) -> AdafactorRow:
        lr, (eps1, eps2) = number(group["lr"], step), group["eps"]
        eps1 = torch.finfo(variant).eps if eps1 is None else float(eps1)
        omb2 = step ** number(group["beta2_decay"], step)
        return AdafactorRow(
            grad_mul=sign(group),
            rho=minimum(lr, 1.0 / sqrt(step)),
            eps_grad=0.0,
            eps_rms=number(eps2, step),
            clip_threshold=number(group["d"], step),
            b2=1.0 - omb2,
            omb2=omb2,
            decay_before=1.0 - lr * number(group["weight_decay"], step),
            mean_floor=eps1,
            update_cap=1.0 / eps1 if eps1 > 0.0 else math.inf,
            step=step,
            flags=ops.SCALE_PARAMETER | ops.CLIP_IGNORES_NAN,
        )

    def _translated_group(self, saved: dict[str, Any]) -> dict[str, Any]:
        # transformers' names. Its eps means something else, and its lr may be None.
        if "decay_rate" in saved:
            saved["beta2_decay"] = saved.pop("decay_rate")
            if "clip_threshold" in saved:
                saved["d"] = max(1.0, saved.pop("clip_threshold"))
            saved.pop("eps", None)
            if saved.get("lr", 0.0) is None:
                del saved["lr"]
        return saved


def _check_implementation_flags(name: str, options: dict[str, Any]) -> None:
    if options["differentiable"]:
        raise RuntimeError(f"{name}: `fused` does not support `differentiable`; use torch.optim")
    if options["fused"] and options["foreach"]:
        raise RuntimeError(f"{name}: `fused` and `foreach` cannot be `True` together.")
