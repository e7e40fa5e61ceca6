"""Cosine schedules for `torch.optim`.

`W`, `T` and `s` in the formulas are `num_warmup_steps`, `num_training_steps` and the scheduler's
step, which counts optimizer steps from 0. Every group's rate is its own base rate times the factor.
A cosine that is asked for steps past `T` climbs again, as transformers' does: training longer than
planned raises the rate. `hold_final_lr=True` keeps the value that the wave has at its planned end.
"""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from . import lambdas
from .build import default_lr, lambda_lr


def get_cosine_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    *,
    warmup_start_ratio: float = 0.0,
    hold_final_lr: bool = False,
) -> LambdaLR:
    """Return a scheduler that warms up, then falls to 0 along a cosine.

    The factor is `s / W` while `s < W`, then, with `x = (s - W) / (T - W)`,
    `max(0, (1 + cos(2 pi num_cycles x)) / 2)`.

    Source: `get_cosine_schedule_with_warmup` of transformers; https://arxiv.org/abs/1608.03983.

    Args:
        optimizer: the optimizer to schedule.
        num_warmup_steps: length of the warm-up; 0 for none.
        num_training_steps: the step at which the cosine ends, warm-up included.
        num_cycles: waves up to then: 0.5 ends at 0, 1 falls and comes back to 1.
        last_epoch: the step to resume after, -1 to start.
        warmup_start_ratio: factor at step 0, from which the warm-up goes linearly to 1.
        hold_final_lr: keep the last value past `num_training_steps`; the rate climbs again if not.

    Returns:
        A LambdaLR.

    Raises:
        TypeError: if a group's learning rate is None.

    Example:
        >>> import torch
        >>> from fused_optim.schedules import get_cosine_schedule_with_warmup
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=10.0)
        >>> scheduler = get_cosine_schedule_with_warmup(optimizer, 2, 10, hold_final_lr=True)
        >>> [round(10.0 * scheduler.lr_lambdas[0](step), 2) for step in (0, 1, 2, 6, 10, 14)]
        [0.0, 5.0, 10.0, 5.0, 0.0, 0.0]
    """
    return lambda_lr(
        optimizer,
        lambdas.cosine_with_warmup,
        last_epoch,
        num_warmup_steps=num_warmup_steps,
        num_training_steps=num_training_steps,
        num_cycles=num_cycles,
        warmup_start_ratio=warmup_start_ratio,
        hold_final_lr=hold_final_lr,
    )


def get_cosine_with_hard_restarts_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: int = 1,
    last_epoch: int = -1,
    *,
    warmup_start_ratio: float = 0.0,
) -> LambdaLR:
    """Return a scheduler that warms up, then falls to 0 along `num_cycles` half-cosines in turn.

    The factor is `s / W` while `s < W`, then, with `x = (s - W) / (T - W)`,
    `(1 + cos(pi ((num_cycles x) mod 1))) / 2`, and 0 from `T` on. Two cycles restart once: the
    default of one, never.

    Source: `get_cosine_with_hard_restarts_schedule_with_warmup` of transformers;
    https://arxiv.org/abs/1608.03983.

    Args:
        optimizer: the optimizer to schedule.
        num_warmup_steps: length of the warm-up; 0 for none.
        num_training_steps: the step at which the last cycle ends, warm-up included.
        num_cycles: falls from the base rate to 0.
        last_epoch: the step to resume after, -1 to start.
        warmup_start_ratio: factor at step 0, from which the warm-up goes linearly to 1.

    Returns:
        A LambdaLR.

    Raises:
        TypeError: if a group's learning rate is None.

    Example:
        >>> import torch
        >>> from fused_optim.schedules import get_cosine_with_hard_restarts_schedule_with_warmup
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=10.0)
        >>> scheduler = get_cosine_with_hard_restarts_schedule_with_warmup(optimizer, 2, 10, 2)
        >>> [round(10.0 * scheduler.lr_lambdas[0](step), 2) for step in (2, 4, 5, 6, 10)]
        [10.0, 5.0, 1.46, 10.0, 0.0]
    """
    return lambda_lr(
        optimizer,
        lambdas.cosine_with_hard_restarts,
        last_epoch,
        num_warmup_steps=num_warmup_steps,
        num_training_steps=num_training_steps,
        num_cycles=num_cycles,
        warmup_start_ratio=warmup_start_ratio,
    )


def get_cosine_with_min_lr_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    *,
    warmup_start_ratio: float = 0.0,
    hold_final_lr: bool = False,
) -> LambdaLR:
    """Return a scheduler that warms up from 0, then falls to a minimum along a cosine.

    The factor is `s / W` while `s < W`, then, with `x = (s - W) / (T - W)` and the ratio `r`,
    `max(0, r + (1 - r) * (1 + cos(2 pi num_cycles x)) / 2)`.

    Source: `get_cosine_with_min_lr_schedule_with_warmup` of transformers.

    Args:
        optimizer: the optimizer to schedule.
        num_warmup_steps: length of the warm-up; 0 for none.
        num_training_steps: the step at which the cosine ends, warm-up included.
        num_cycles: waves up to then: 0.5 ends at the minimum, 1 falls and comes back to 1.
        last_epoch: the step to resume after, -1 to start.
        min_lr: the minimum as a learning rate: `r = min_lr / optimizer.defaults["lr"]`.
        min_lr_rate: the minimum as the ratio `r` of the base rate.
        warmup_start_ratio: factor at step 0, from which the warm-up goes linearly to 1.
        hold_final_lr: keep the last value past `num_training_steps`; the rate climbs again if not.

    Returns:
        A LambdaLR.

    Raises:
        TypeError: if a learning rate is None.
        ValueError: unless exactly one of `min_lr` and `min_lr_rate` is given.

    Example:
        >>> import torch
        >>> from fused_optim.schedules import get_cosine_with_min_lr_schedule_with_warmup
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=10.0)
        >>> scheduler = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 2, 10, min_lr=1.0)
        >>> [round(10.0 * scheduler.lr_lambdas[0](step), 2) for step in (0, 1, 2, 6, 10)]
        [0.0, 5.0, 10.0, 5.5, 1.0]
    """
    return lambda_lr(
        optimizer,
        lambdas.cosine_with_warmup,
        last_epoch,
        num_warmup_steps=num_warmup_steps,
        num_training_steps=num_training_steps,
        num_cycles=num_cycles,
        min_lr_rate=_min_ratio(optimizer, min_lr, min_lr_rate),
        warmup_start_ratio=warmup_start_ratio,
        hold_final_lr=hold_final_lr,
    )


def get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
    *,
    hold_final_lr: bool = False,
) -> LambdaLR:
    """Return `get_cosine_with_min_lr_schedule_with_warmup` one step ahead: no first step at rate 0.

    The factor is `(s + 1) / W` while `s < W`, or `w + (1 - w) * s / (W - 1)` with `warmup_lr_rate`
    `w`; then the cosine with `x = (s - W + 1) / (T - W)`, whose minimum is the last of the training
    steps, `s = T - 1`.

    Source: `get_cosine_with_min_lr_schedule_with_warmup_lr_rate` of transformers.

    Args:
        optimizer: the optimizer to schedule.
        num_warmup_steps: length of the warm-up; 0 for none.
        num_training_steps: number of training steps, warm-up included.
        num_cycles: waves up to then: 0.5 ends at the minimum, 1 falls and comes back to 1.
        last_epoch: the step to resume after, -1 to start.
        min_lr: the minimum as a learning rate: `r = min_lr / optimizer.defaults["lr"]`.
        min_lr_rate: the minimum as the ratio `r` of the base rate.
        warmup_lr_rate: factor at step 0; None takes `1 / num_warmup_steps`.
        hold_final_lr: keep the last value past the end; the rate climbs again if not.

    Returns:
        A LambdaLR.

    Raises:
        TypeError: if a learning rate is None.
        ValueError: unless exactly one of `min_lr` and `min_lr_rate` is given.

    Example:
        >>> import torch
        >>> from fused_optim.schedules import get_cosine_with_min_lr_schedule_with_warmup_lr_rate
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=10.0)
        >>> scheduler = get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
        ...     optimizer, 2, 10, min_lr_rate=0.1
        ... )
        >>> [round(10.0 * scheduler.lr_lambdas[0](step), 2) for step in (0, 1, 5, 9)]
        [5.0, 10.0, 5.5, 1.0]
    """
    return lambda_lr(
        optimizer,
        lambdas.cosine_from_first_step,
        last_epoch,
        num_warmup_steps=num_warmup_steps,
        num_training_steps=num_training_steps,
        num_cycles=num_cycles,
        min_lr_rate=_min_ratio(optimizer, min_lr, min_lr_rate),
        warmup_lr_rate=warmup_lr_rate,
        hold_final_lr=hold_final_lr,
    )


def _min_ratio(optimizer: Optimizer, min_lr: float | None, min_lr_rate: float | None) -> float:
    if min_lr is not None and min_lr_rate is not None:
        raise ValueError(
            f"min_lr ({min_lr}) and min_lr_rate ({min_lr_rate}) set the same minimum; pass one."
        )
    if min_lr is not None:
        return min_lr / default_lr(optimizer)
    if min_lr_rate is None:
        raise ValueError(
            "This schedule needs its minimum: pass min_lr (a learning rate) or min_lr_rate (a "
            "ratio of the base rate); through get_scheduler, in scheduler_specific_kwargs."
        )
    return min_lr_rate
