"""AdamWeightDecay and create_optimizer: TensorFlow's half of transformers, in PyTorch."""

from __future__ import annotations

import numbers
import re
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fused_optim import errors
from fused_optim.backends.interface import Launch
from fused_optim.distributed import clipping
from fused_optim.ops import AdamWRow
from fused_optim.optimizers import adam_scalars, validation
from fused_optim.optimizers.adamw import AdamFamily
from fused_optim.optimizers.base import CommonOptions
from fused_optim.plan.work import Work
from fused_optim.schedules import PolynomialDecay, WarmUp

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Keras reads an epsilon of 0 as "not given", and takes this one.
_KERAS_EPSILON = 1e-7

_NO_DECAY = ("LayerNorm", "layer_norm", "bias")


class AdamWeightDecay(AdamFamily):
    r"""Adam with decoupled weight decay chosen by parameter name, as transformers' for TensorFlow.

    .. math::
        p = p - \mathrm{lr} \cdot \mathrm{weight\_decay\_rate} \cdot p \qquad
        p = p - \mathrm{lr} \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t} \frac{m}{\sqrt{v} + \epsilon}

    A parameter decays unless ``weight_decay_rate`` is 0: if an include pattern matches its name,
    yes; else if an exclude pattern matches, no; else yes. So include patterns only make exceptions
    from exclude patterns, and alone change nothing.

    Gradients are clipped within the step, and not written to: first ``clipvalue``, then
    ``clipnorm`` or ``global_clipnorm``.

    Memory: as `fused_optim.AdamW`; ``amsgrad`` adds one more moment.

    Args:
        params: named parameters (``model.named_parameters()``), or groups of them; plain parameters
            where there are no patterns. A group's weight decay is its key ``weight_decay``.
        learning_rate: a number, or a callable of the step that `step` itself evaluates at its own
            count, from 0: `WarmUp`, `PolynomialDecay` or any function. It is written to
            ``group["lr"]`` and not saved with the state. Callables do not go with ``capturable``.
            The count is the optimizer's, shown as ``iterations`` in every group: a group added
            later joins at it, and of counts that differ, as they may in a loaded dict, all groups
            take the largest.
        beta_1: decay rate of the first moment, in [0, 1).
        beta_2: decay rate of the second moment, in [0, 1).
        epsilon: added to the denominator; 0 means 1e-7, as in Keras.
        amsgrad: divide by the maximum of all second moments so far.
        weight_decay_rate: decay, times the learning rate; negative values grow parameters.
        include_in_weight_decay: regular expressions searched for in names.
        exclude_from_weight_decay: regular expressions searched for in names.
        name: for the user's own use; kept as ``optimizer.name``.
        clipnorm: bound of the norm of each gradient.
        clipvalue: bound of the magnitude of each element of a gradient.
        global_clipnorm: bound of the norm of all gradients together.
        lr: old name of ``learning_rate``; wins over it.
        decay: divides the learning rate by ``1 + decay * steps so far``.
        **common: ``backend``, ``low_precision``, ``state_dtype``, ``maximize``, ``capturable``,
            ``max_grad_norm`` and ``seed``; see `fused_optim.optimizers.base.FusedOptimizer`.

    Raises:
        ValueError: a hyperparameter is out of range, two clips of norms are given, or patterns are
            given for parameters without names.
        re.error: a pattern is no regular expression.

    Note:
        Bias correction counts a parameter's own steps; TensorFlow counts the optimizer's. They
        differ for parameters that go without gradients for a while.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = AdamWeightDecay(model.named_parameters(), weight_decay_rate=0.01,
        ...                             exclude_from_weight_decay=["bias"])
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()

    Source: ``transformers.AdamWeightDecay`` 4.38 on the legacy Keras Adam.
    """

    _attributes = (*AdamFamily._attributes, "clipnorm", "global_clipnorm", "decay")
    _pickled = (
        *AdamFamily._pickled,
        *("learning_rate", "name", "clipnorm", "global_clipnorm", "decay"),
        *("include_in_weight_decay", "exclude_from_weight_decay"),
    )

    def __init__(
        self,
        params: Any,
        learning_rate: float | Callable[[int], float] = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        weight_decay_rate: float = 0.0,
        include_in_weight_decay: Sequence[str] | None = None,
        exclude_from_weight_decay: Sequence[str] | None = None,
        name: str = "AdamWeightDecay",
        *,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        lr: float | Callable[[int], float] | None = None,
        decay: float = 0.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        if lr is not None:
            warnings.warn("`lr` is deprecated; use `learning_rate`", FutureWarning, stacklevel=2)
            learning_rate = lr
        _check_keras_options(clipvalue=clipvalue, decay=decay)
        self.learning_rate = learning_rate if callable(learning_rate) else None
        self.name = name
        self.clipnorm, self.global_clipnorm = clipnorm, global_clipnorm
        self.decay = decay or 0.0
        self.include_in_weight_decay = _compiled(include_in_weight_decay)
        self.exclude_from_weight_decay = _compiled(exclude_from_weight_decay)
        defaults = {
            "lr": float(learning_rate(0)) if callable(learning_rate) else learning_rate,
            "betas": (beta_1, beta_2),
            "eps": epsilon or _KERAS_EPSILON,
            "amsgrad": amsgrad,
            "weight_decay": weight_decay_rate,
            "clipvalue": clipvalue,
            "iterations": 0,
        }
        super().__init__(params, defaults, **common)

    def _check_attributes(self) -> None:
        super()._check_attributes()
        _check_keras_options(clipnorm=self.clipnorm, global_clipnorm=self.global_clipnorm)
        _check_keras_options(decay=self.decay)
        norms = (self.max_grad_norm, self.clipnorm, self.global_clipnorm)
        if sum(norm is not None for norm in norms) > 1:
            raise ValueError(
                "Cannot accept more than one of clipnorm, global_clipnorm and max_grad_norm; pass "
                "one"
            )

    def decays(self, name: str) -> bool:
        """Return whether a parameter of this name decays, at whatever rate its group has."""
        if any(pattern.search(name) for pattern in self.include_in_weight_decay):
            return True
        return not any(pattern.search(name) for pattern in self.exclude_from_weight_decay)

    def _check_group(self, group: dict[str, Any]) -> None:
        validation.check_number(group["lr"], "learning rate", low=0.0)
        validation.check_betas(group["betas"])
        validation.check_number(group["eps"], "epsilon value", low=0.0)
        validation.check_number(group["weight_decay"], "weight_decay_rate")
        validation.check_flag(group["amsgrad"], "amsgrad")
        count = group["iterations"]
        if not (isinstance(count, numbers.Real) and count >= 0 and float(count).is_integer()):
            raise ValueError(f"Invalid iterations: {count!r} - should be a whole number, 0 or more")
        if group["clipvalue"] is not None:
            validation.check_number(group["clipvalue"], "clipvalue", low=0.0)
        if group["capturable"] and (self.learning_rate is not None or self.decay):
            raise ValueError(
                "capturable=True can't go with a callable learning_rate or with decay, which are "
                "evaluated on the host at each step; pass a number and step a scheduler beside it"
            )
        has_patterns = self.include_in_weight_decay or self.exclude_from_weight_decay
        if has_patterns and group["params"] and "param_names" not in group:
            raise ValueError(
                "include_in_weight_decay and exclude_from_weight_decay match parameter names; "
                "pass model.named_parameters() instead of model.parameters()"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, which joins at the optimizer's count of iterations.

        Raises:
            ValueError: a hyperparameter or parameter can't be used; nothing was added.
        """
        joins, count = bool(self.param_groups), self._agree_on_count()
        rate = self._rate_at(count) if count else None
        super().add_param_group(param_group)
        if joins:
            self.param_groups[-1]["iterations"] = count
        if rate is not None:
            self.param_groups[-1]["lr"] = rate

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._agree_on_count()

    def _agree_on_count(self) -> int:
        """Give every group the largest count of iterations, and return that."""
        count = max((int(group["iterations"]) for group in self.param_groups), default=0)
        for group in self.param_groups:
            group["iterations"] = count
        return count

    def _prepare_step(self) -> Callable[[], None]:
        count = self._agree_on_count()
        rate = self._rate_at(count)
        before = [(group, group["lr"]) for group in self.param_groups]
        for group in self.param_groups:
            # A rate of 0 before the first step is not the schedule's own: with such a step and
            # gradients of zero, torch.distributed.checkpoint creates state and wants no decay.
            held = count == 0 and float(group["lr"]) == 0.0
            if rate is not None and not held:
                group["lr"] = rate
            group["iterations"] = count + 1

        def take_back() -> None:
            for group, lr in before:
                group["lr"], group["iterations"] = lr, count

        return take_back

    def _rate_at(self, count: int) -> float | None:
        """Return a callable learning rate's value after ``count`` steps; None for a number."""
        if self.learning_rate is None:
            return None
        rate = self.learning_rate(count)
        with errors.naming(f"{type(self).__name__}: learning_rate({count}) returned a bad rate. "):
            validation.check_number(rate, "learning rate", low=0.0)
        return float(rate)

    def _translated_group(self, saved: dict[str, Any]) -> dict[str, Any]:
        # A peer's dict has no such count, so the schedule goes on from the parameters' counts.
        saved.setdefault("iterations", int(float(saved["step"])))
        return saved

    def _structure(self, group: dict[str, Any]) -> Any:
        patterns = (self.include_in_weight_decay, self.exclude_from_weight_decay)
        return (super()._structure(group), *patterns, group.get("param_names"))

    def _check_members(self, group: dict[str, Any]) -> None:
        names = group.get("param_names")
        if names is not None and len(names) != len(group["params"]):
            raise ValueError(
                f"param_names has {len(names)} names for {len(group['params'])} parameters, and "
                "weight decay goes by name; change both lists together"
            )

    def _row_variant(self, group: dict[str, Any], index: int, param: torch.Tensor) -> Hashable:
        names = group.get("param_names")
        return self.decays(names[index] if names else "")

    def _row(self, group: dict[str, Any], step: int | torch.Tensor, variant: Hashable) -> AdamWRow:
        # `_prepare_step` has counted this step already; Keras counts it afterwards.
        divisor = 1.0 + self.decay * (group["iterations"] - 1)
        return adam_scalars.tensorflow_row(group, step, decays=bool(variant), lr_divisor=divisor)

    def _clips_together(self) -> bool:
        return self.global_clipnorm is not None or super()._clips_together()

    def _clips_by_whole_norms(self) -> bool:
        if self.clipnorm is not None:  # clip_group sums over ranks, and not for each gradient
            return True
        together = self.global_clipnorm is not None and self.clip_group is None
        return together or super()._clips_by_whole_norms()

    def _clips(self) -> bool:
        return super()._clips() or self.clipnorm is not None or self.global_clipnorm is not None

    def _clip(self, launched: list[tuple[Work, Launch]], squares: clipping.Squares) -> None:
        if self.clipnorm is not None:
            clipnorm = float(self.clipnorm)
            for (_, launch), each in zip(launched, squares.each, strict=True):
                launch.clip = clipnorm / each.sqrt().clamp(min=clipnorm)
                launch.clip_per_tensor = True
        elif self.global_clipnorm is not None:
            self.grad_norm = self._global_norm(squares)
            bound = float(self.global_clipnorm)
            coefficient = bound / self.grad_norm.clamp(min=bound)
            for work, launch in launched:
                launch.clip = coefficient.to(work.key.device)
        else:
            super()._clip(launched, squares)


def create_optimizer(
    params: Any,
    init_lr: float,
    num_train_steps: int,
    num_warmup_steps: int,
    min_lr_ratio: float = 0.0,
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.999,
    adam_epsilon: float = 1e-8,
    adam_clipnorm: float | None = None,
    adam_global_clipnorm: float | None = None,
    weight_decay_rate: float = 0.0,
    power: float = 1.0,
    include_in_weight_decay: Sequence[str] | None = None,
    **common: Unpack[CommonOptions],
) -> tuple[AdamWeightDecay, Callable[[int], float]]:
    """Return an optimizer and the schedule it follows: linear warm-up, then polynomial decay.

    Weight decay leaves out parameters whose names contain ``LayerNorm``, ``layer_norm`` or
    ``bias``. Where a model calls its norms otherwise, construct `AdamWeightDecay` with patterns.

    Args:
        params: named parameters (``model.named_parameters()``), or groups of them.
        init_lr: learning rate at the end of the warm-up.
        num_train_steps: steps in all, warm-up included.
        num_warmup_steps: steps of the warm-up.
        min_lr_ratio: learning rate at the end, as a fraction of ``init_lr``.
        adam_beta1: decay rate of the first moment.
        adam_beta2: decay rate of the second moment.
        adam_epsilon: added to the denominator.
        adam_clipnorm: bound of the norm of each gradient.
        adam_global_clipnorm: bound of the norm of all gradients together.
        weight_decay_rate: decay, times the learning rate; 0 and below mean none.
        power: of the polynomial decay; the warm-up is always linear.
        include_in_weight_decay: regular expressions of names that decay all the same.
        **common: see `fused_optim.optimizers.base.FusedOptimizer`.

    Returns:
        The optimizer, and the callable of the step that it evaluates itself. Do not step a
        scheduler beside it.

    Raises:
        ValueError: as `AdamWeightDecay`.

    Source: ``transformers.create_optimizer`` 4.38.
    """
    schedule: Callable[[int], float] = PolynomialDecay(
        init_lr, num_train_steps - num_warmup_steps, init_lr * min_lr_ratio, power
    )
    if num_warmup_steps:
        schedule = WarmUp(init_lr, schedule, num_warmup_steps)
    decays = weight_decay_rate > 0.0
    optimizer = AdamWeightDecay(
        params,
        schedule,
        adam_beta1,
        adam_beta2,
        adam_epsilon,
        weight_decay_rate=weight_decay_rate if decays else 0.0,
        include_in_weight_decay=include_in_weight_decay if decays else None,
        exclude_from_weight_decay=_NO_DECAY if decays else None,
        clipnorm=adam_clipnorm,
        global_clipnorm=adam_global_clipnorm,
        **common,
    )
    return optimizer, schedule


def _compiled(patterns: Sequence[str] | None) -> tuple[re.Pattern[str], ...]:
    if isinstance(patterns, str):
        raise ValueError(f"weight decay patterns must be a list of strings, got {patterns!r}")
    return tuple(re.compile(pattern) for pattern in patterns or ())


def _check_keras_options(**options: float | None) -> None:
    """Check Keras' keyword arguments, with its messages; None means "not given"."""
    for name, value in options.items():
        if value is not None and not (isinstance(value, numbers.Real) and value >= 0):
            raise ValueError(f"Expected {name} >= 0, received: {value!r}")
