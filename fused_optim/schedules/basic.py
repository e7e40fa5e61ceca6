"""Constant, linear and plateau schedules for `torch.optim`.

`W`, `T` and `s` in the formulas are `num_warmup_steps`, `num_training_steps` and the scheduler's
step, which counts optimizer steps from 0. Every group's rate is its own base rate times the factor.
Unless `warmup_start_ratio` says otherwise, the first of the warm-up's steps runs at a rate of 0.
"""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from . import lambdas
from .build import lambda_lr, require_group_lrs


def get_constant_schedule(optimizer: Optimizer, last_epoch: int = -1) -> LambdaLR:
    """Return a scheduler that leaves the learning rate alone: the factor is 1.

    Source: `get_constant_schedule` of transformers.

    Args:
        optimizer: the optimizer to schedule.
        last_epoch: the step to resume after, -1 to start.

    Returns:
        A LambdaLR.

    Raises:
        TypeError: if a group's learning rate is None.

    Example:
        >>> import torch
        >>> from fused_optim.schedules import get_constant_schedule
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=10.0)
        >>> get_constant_schedule(optimizer).get_last_lr()
        [10.0]
    """
    return lambda_lr(optimizer, lambdas.constant, last_epoch)


def get_constant_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    last_epoch: int = -1,
    *,
    warmup_start_ratio: float = 0.0,
) -> LambdaLR:
    """Return a scheduler with a linear warm-up: `s / W` while `s < W`, then 1.

    Source: `get_constant_schedule_with_warmup` of transformers.

    Args:
        optimizer: the optimizer to schedule.
        num_warmup_steps: length of the warm-up; 0 for none.
        last_epoch: the step to resume after, -1 to start.
        warmup_start_ratio: factor at step 0, from which the warm-up goes linearly to 1.

    Returns:
        A LambdaLR.

    Raises:
        TypeError: if a group's learning rate is None.

    Example:
        >>> import torch
        >>> from fused_optim.schedules import get_constant_schedule_with_warmup
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=10.0)
        >>> scheduler = get_constant_schedule_with_warmup(optimizer, 4, warmup_start_ratio=0.2)
        >>> scheduler.get_last_lr()
        [2.0]
    """
    return lambda_lr(
        optimizer,
        lambdas.constant_with_warmup,
        last_epoch,
        num_warmup_steps=num_warmup_steps,
        warmup_start_ratio=warmup_start_ratio,
    )


def get_linear_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    last_epoch: int = -1,
    *,
    warmup_start_ratio: float = 0.0,
) -> LambdaLR:
    """Return a scheduler that warms up, then falls to 0 in a straight line.

    The factor is `s / W` while `s < W`, then `max(0, (T - s) / (T - W))`.

    Source: `get_linear_schedule_with_warmup` of transformers.

    Args:
        optimizer: the optimizer to schedule.
        num_warmup_steps: length of the warm-up; 0 for none.
        num_training_steps: the step at which the rate reaches 0, warm-up included.
        last_epoch: the step to resume after, -1 to start.
        warmup_start_ratio: factor at step 0, from which the warm-up goes linearly to 1.

    Returns:
        A LambdaLR.

    Raises:
        TypeError: if a group's learning rate is None.

    Example:
        >>> import torch
        >>> from fused_optim.schedules import get_linear_schedule_with_warmup
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=10.0)
        >>> factor = get_linear_schedule_with_warmup(optimizer, 2, 10).lr_lambdas[0]
        >>> [10.0 * factor(step) for step in range(5)]
        [0.0, 5.0, 10.0, 8.75, 7.5]
    """
    return lambda_lr(
        optimizer,
        lambdas.linear_with_warmup,
        last_epoch,
        num_warmup_steps=num_warmup_steps,
        num_training_steps=num_training_steps,
        warmup_start_ratio=warmup_start_ratio,
    )


def get_reduce_on_plateau_schedule(optimizer: Optimizer, **kwargs: Any) -> ReduceLROnPlateau:
    """Return torch's ReduceLROnPlateau: the rate falls when a metric has stopped improving.

    Its `step` takes the metric: `scheduler.step(validation_loss)`.

    Source: `get_reduce_on_plateau_schedule` of transformers.

    Args:
        optimizer: the optimizer to schedule.
        **kwargs: arguments of `torch.optim.lr_scheduler.ReduceLROnPlateau` (`factor`, `patience`).

    Returns:
        A ReduceLROnPlateau.

    Raises:
        TypeError: if a group's learning rate is None.

    Example:
        >>> import torch
        >>> from fused_optim.schedules import get_reduce_on_plateau_schedule
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=10.0)
        >>> scheduler = get_reduce_on_plateau_schedule(optimizer, factor=0.5, patience=0)
        >>> for loss in (3.0, 3.0):
        ...     scheduler.step(loss)
        >>> optimizer.param_groups[0]["lr"]
        5.0
    """
    require_group_lrs(optimizer)
    return ReduceLROnPlateau(optimizer, **kwargs)
