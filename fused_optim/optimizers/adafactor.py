"""Adafactor with the semantics of ``transformers.Adafactor``."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch

from fused_optim import ops, precision
from fused_optim.ops import AdafactorRow
from fused_optim.optimizers import validation
from fused_optim.optimizers.adafactor_family import AdafactorFamily, statistics_dtype, unfactored
from fused_optim.optimizers.base import CommonOptions
from fused_optim.optimizers.scalars import number, relative_step_size, sign
from fused_optim.precision.state import StateTensor, moment

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class Adafactor(AdafactorFamily):
    r"""Adafactor as in transformers, fused, for parameters of any precision.

    A matrix keeps one statistic per row and one per column instead of one per element. With
    :math:`G` the gradient at step :math:`t`, :math:`S = G^2 + \epsilon_1`,
    :math:`\hat\beta_t = 1 - t^{\mathrm{decay\_rate}}`:

    .. math::
        R &= \hat\beta_t R + (1-\hat\beta_t)\, \mathrm{mean}_j S \qquad
        C = \hat\beta_t C + (1-\hat\beta_t)\, \mathrm{mean}_i S \\
        U &= G / \sqrt{R C^\top / \mathrm{mean}(R)} \qquad
        U = U / \max(1, \mathrm{RMS}(U) / \mathrm{clip\_threshold}) \\
        \alpha &= \rho_t \max(\epsilon_2, \mathrm{RMS}(p)) \qquad
        p = p - \mathrm{weight\_decay}\, \alpha\, p - \alpha U

    Leading dimensions are batches of matrices; tensors of fewer than two dimensions keep a full
    second moment. All statistics are float32 (float64 for float64 parameters).

    Memory: next to nothing for matrices, 4 bytes per element for vectors (1.02 with
    ``state_dtype="int8"``); ``beta1`` adds 4 bytes per parameter (2 with ``torch.bfloat16``, 1.02
    with ``"int8"``), ``low_precision`` 2 for bfloat16 and 4 for float16 parameters by default.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: learning rate; only without ``relative_step``, and then needed.
        eps: (added to squared gradients, floor of the parameter's root mean square).
        clip_threshold: root mean square above which updates are scaled down; ``float("inf")``
            turns this off.
        decay_rate: exponent of the decay of the statistics, at most 0.
        beta1: decay rate of a first moment of the scaled updates, in [0, 1), or None for none.
        weight_decay: decoupled, times the effective learning rate :math:`\alpha`.
        scale_parameter: scale the learning rate with the parameter's root mean square.
        relative_step: :math:`\rho_t = \min(10^{-2}, 1/\sqrt t)` instead of ``lr``.
        warmup_init: with ``relative_step``, :math:`\rho_t = \min(10^{-6} t, 1/\sqrt t)`.
        **common: ``backend``, ``low_precision``, ``state_dtype``, ``maximize``, ``capturable``,
            ``max_grad_norm`` and ``seed``; see `fused_optim.optimizers.base.FusedOptimizer`.

    Raises:
        ValueError: a hyperparameter is out of range, options contradict each other, or a parameter
            can't be optimized.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = Adafactor(model.parameters(), lr=1e-3, relative_step=False,
        ...                       scale_parameter=False)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()

    Note:
        ``state[p]["RMS"]`` is kept up to date with ``scale_parameter=True`` only. A tensor whose
        gradient is all zero while ``relative_step`` is on and its group's lr is 0 is not moved:
        torch.distributed.checkpoint makes such a step to create state.

        `Adafactor.t5` and `Adafactor.paper` have the settings that are recommended.

    Source: Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, 2018.
    """

    _aliases = {
        "row_var": "exp_avg_sq_row",
        "col_var": "exp_avg_sq_col",
        "variance": "exp_avg_sq",
    }

    def __init__(
        self,
        params: Any,
        lr: float | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
            "beta1": beta1,
            "weight_decay": weight_decay,
            "scale_parameter": scale_parameter,
            "relative_step": relative_step,
            "warmup_init": warmup_init,
        }
        super().__init__(params, defaults, **common)

    @classmethod
    def t5(cls, params: Any, lr: float = 1e-3, **options: Any) -> Self:
        """Return an optimizer with the settings for fine-tuning T5, which suit most fine-tuning.

        They are a learning rate of its own, as it stands: ``relative_step=False``,
        ``scale_parameter=False``, ``warmup_init=False`` and ``clip_threshold=1.0``. Warm the rate
        up by a schedule, as `fused_optim.get_constant_schedule_with_warmup`, and clip no gradients
        besides: Adafactor scales its updates down by itself.

        Args:
            params: as of the constructor.
            lr: learning rate.
            **options: of the constructor; each takes the place of one above.
        """
        recipe = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
        return cls(params, **{"lr": lr, "clip_threshold": 1.0, **recipe, **options})

    @classmethod
    def paper(cls, params: Any, **options: Any) -> Self:
        """Return an optimizer with the settings that its paper proposes, for pre-training.

        There is no learning rate, as a step is ``min(1e-2, 1 / sqrt(t))`` times the parameter's
        root mean square: ``lr=None``, ``relative_step=True``, ``scale_parameter=True``,
        ``eps=(1e-30, 1e-3)``, ``clip_threshold=1.0``, ``decay_rate=-0.8`` and no first moment.
        ``warmup_init=False`` is part of them, too; ``warmup_init=True`` begins at 1e-6 instead,
        as the paper's experiments with a warmup do.

        Args:
            params: as of the constructor.
            **options: of the constructor; each takes the place of one above.
        """
        recipe = {"scale_parameter": True, "relative_step": True, "warmup_init": False}
        sizes = {"eps": (1e-30, 1e-3), "clip_threshold": 1.0, "decay_rate": -0.8, "beta1": None}
        return cls(params, **{"lr": None, **sizes, **recipe, **options})

    def effective_lr(self, group: dict[str, Any]) -> float | None:
        """Return alpha of the group's first updated parameter in its last step, as a float.

        With ``scale_parameter`` each parameter has its own alpha. Before the first step it is None.
        The parameter's root mean square is read from its device, which waits for the step to end.
        """
        for param in group["params"]:
            param_state = self.state.get(param, {})
            has_rms = "RMS" in param_state or not group["scale_parameter"]
            if param_state.get("step") and has_rms:  # a shard's dict has no RMS
                return self._get_lr(group, param_state)
        return None

    @staticmethod
    def _get_lr(group: dict[str, Any], param_state: dict[str, Any]) -> float:
        """Return alpha, as transformers' method of this name, which ``AdafactorSchedule`` calls."""
        rho = relative_step_size(group, int(param_state["step"]))
        if not group["scale_parameter"]:
            return rho
        return rho * max(group["eps"][1], float(param_state["RMS"]))

    def _check_group(self, group: dict[str, Any]) -> None:
        for flag in ("scale_parameter", "relative_step", "warmup_init"):
            validation.check_flag(group[flag], flag)
        if group["warmup_init"] and not group["relative_step"]:
            raise ValueError("`warmup_init=True` requires `relative_step=True`")
        if group["lr"] is not None:  # AdafactorSchedule writes an lr, whatever relative_step is
            validation.check_number(group["lr"], "learning rate", low=0.0)
        elif not group["relative_step"]:
            raise ValueError(
                "relative_step=False needs an lr (1e-3 is common); lr=None requires "
                "relative_step=True"
            )
        eps = group["eps"]
        if not isinstance(eps, (tuple, list)) or len(eps) != 2:
            raise ValueError(f"Invalid eps: {eps!r} - should be a pair of numbers >= 0.0")
        validation.check_number(eps[0], "eps[0]", low=0.0)
        validation.check_number(eps[1], "eps[1]", low=0.0)
        if group["clip_threshold"] is None:
            raise ValueError("Invalid clip_threshold: None - float('inf') turns clipping off")
        validation.check_number(group["clip_threshold"], "clip_threshold", low=0.0)
        validation.check_number(group["decay_rate"], "decay_rate", high=0.0)
        if group["beta1"] is not None:
            validation.check_number(group["beta1"], "beta1", low=0.0, high=1.0, open_high=True)
        validation.check_number(group["weight_decay"], "weight_decay")

    def _check_new_group(self, group: dict[str, Any]) -> None:
        if group["lr"] is not None and group["relative_step"]:
            raise ValueError(
                "Cannot combine manual `lr` and `relative_step=True` options; "
                "pass relative_step=False with an lr, or lr=None"
            )

    def _state_spec(self, group: dict[str, Any], param: torch.Tensor) -> tuple[StateTensor, ...]:
        dtype = statistics_dtype(param)
        spec = (StateTensor("RMS", "rms", dtype, "scalar", needed=False),)
        if group["beta1"] is not None:
            first, _ = precision.resolve_state_dtype(group["state_dtype"], param.dtype)
            spec += (
                moment("exp_avg", "exp_avg", first, param, in_tiles=True, may_begin_late=True),
            )
        if param.dim() < 2:
            return (*spec, unfactored("exp_avg_sq", group, param))
        return (
            *spec,
            StateTensor("exp_avg_sq_row", "exp_avg_sq", dtype, "rows"),
            StateTensor("exp_avg_sq_col", "max_exp_avg_sq", dtype, "cols"),
        )

    def _row(
        self, group: dict[str, Any], step: int | torch.Tensor, variant: Hashable
    ) -> AdafactorRow:
        flags = ops.SCALE_PARAMETER * group["scale_parameter"]
        if group["relative_step"] and group["lr"] is not None:
            flags = flags + ops.HOLD_IF_ZERO * (number(group["lr"], step) == 0.0)
        beta1 = 0.0 if group["beta1"] is None else number(group["beta1"], step)
        omb2 = step ** number(group["decay_rate"], step)
        return AdafactorRow(
            grad_mul=sign(group),
            rho=relative_step_size(group, step),
            eps_grad=number(group["eps"][0], step),
            eps_rms=number(group["eps"][1], step),
            clip_threshold=number(group["clip_threshold"], step),
            b2=1.0 - omb2,
            omb2=omb2,
            b1=beta1,
            omb1=1.0 - beta1,
            decay_alpha=number(group["weight_decay"], step),
            step=step,
            flags=flags,
        )

    def _translated_group(self, saved: dict[str, Any]) -> dict[str, Any]:
        # These are torch.optim.Adafactor's names. Its eps has another meaning, so it is left out.
        if "beta2_decay" in saved:
            saved["decay_rate"] = saved.pop("beta2_decay")
            if "d" in saved:
                saved["clip_threshold"] = saved.pop("d")
            saved.pop("eps", None)
        return saved
