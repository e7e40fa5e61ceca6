"""Schedules that fall as a power of the step: polynomial and inverse square root.

`W`, `T` and `s` in the formulas are `num_warmup_steps`, `num_training_steps` and the scheduler's
step, which counts optimizer steps from 0. Every group's rate is its own base rate times the factor.
"""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from . import lambdas
from .build import default_lr, lambda_lr


def get_polynomial_decay_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    lr_end: float = 1e-7,
    power: float = 1.0,
    last_epoch: int = -1,
    *,
    warmup_start_ratio: float = 0.0,
) -> LambdaLR:
    """Return a scheduler that warms up, then falls to `lr_end` as a power of the steps left.

    The factor is `s / W` while `s < W`, then, with `x = min(1, (s - W) / (T - W))`,

        (lr_end + (lr_init - lr_end) * (1 - x)**power) / lr_init

    where `lr_init` is the optimizer's own `lr` argument. A group with another rate ends at the same
    share of it: `lr_end * group_lr / lr_init`.

    Source: `get_polynomial_decay_schedule_with_warmup` of transformers, after BERT's.

    Args:
        optimizer: the optimizer to schedule.
        num_warmup_steps: length of the warm-up; 0 for none.
        num_training_steps: the step at which the rate reaches `lr_end`, warm-up included.
        lr_end: the last learning rate, less than the optimizer's.
        power: exponent of the decay, 1.0 for a straight line.
        last_epoch: the step to resume after, -1 to start.
        warmup_start_ratio: factor at step 0, from which the warm-up goes linearly to 1.

    Returns:
        A LambdaLR.

    Raises:
        TypeError: if a learning rate is None.
        ValueError: if `lr_end` is not less than the optimizer's `lr`, or if `num_training_steps`
            equals `num_warmup_steps`.

    Example:
        >>> import torch
        >>> from fused_optim.schedules import get_polynomial_decay_schedule_with_warmup
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=8.0)
        >>> scheduler = get_polynomial_decay_schedule_with_warmup(optimizer, 0, 2, 4.0, power=2.0)
        >>> [8.0 * scheduler.lr_lambdas[0](step) for step in range(4)]
        [8.0, 5.0, 4.0, 4.0]
    """
    lr_init = default_lr(optimizer)
    if not lr_init > lr_end:
        raise ValueError(
            f"lr_end ({lr_end}) must be smaller than the optimizer's lr ({lr_init}): it is where "
            "the decay ends. Lower lr_end or raise lr."
        )
    if num_training_steps == num_warmup_steps:
        raise ValueError(
            f"num_training_steps and num_warmup_steps are both {num_training_steps}, which leaves "
            "no steps to decay in. Raise num_training_steps or lower num_warmup_steps, or use "
            "get_constant_schedule_with_warmup if no decay is wanted."
        )
    return lambda_lr(
        optimizer,
        lambdas.polynomial_decay,
        last_epoch,
        num_warmup_steps=num_warmup_steps,
        num_training_steps=num_training_steps,
        lr_init=lr_init,
        lr_end=lr_end,
        power=power,
        warmup_start_ratio=warmup_start_ratio,
    )


def get_inverse_sqrt_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int,
    timescale: int | None = None,
    last_epoch: int = -1,
    *,
    warmup_start_ratio: float = 0.0,
) -> LambdaLR:
    """Return a scheduler that warms up, then falls as the inverse square root of the step.

    The factor is `s / W` while `s < W`, then `1 / sqrt((s - W + timescale) / timescale)`, which is
    1 at `s = W` for any timescale and never ends.

    Source: `get_inverse_sqrt_schedule` of transformers, after big_vision's.

    Args:
        optimizer: the optimizer to schedule.
        num_warmup_steps: length of the warm-up; 0 for none.
        timescale: steps after the warm-up until the factor is `1 / sqrt(2)`. None takes
            `num_warmup_steps`, or 10,000 if that is 0.
        last_epoch: the step to resume after, -1 to start.
        warmup_start_ratio: factor at step 0, from which the warm-up goes linearly to 1.

    Returns:
        A LambdaLR.

    Raises:
        TypeError: if a group's learning rate is None.

    Example:
        >>> import torch
        >>> from fused_optim.schedules import get_inverse_sqrt_schedule
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=10.0)
        >>> factor = get_inverse_sqrt_schedule(optimizer, 2).lr_lambdas[0]
        >>> [10.0 * factor(step) for step in (0, 1, 2, 8)]
        [0.0, 5.0, 10.0, 5.0]
    """
    if timescale is None:
        timescale = num_warmup_steps or 10_000
    return lambda_lr(
        optimizer,
        lambdas.inverse_sqrt,
        last_epoch,
        num_warmup_steps=num_warmup_steps,
        timescale=timescale,
        warmup_start_ratio=warmup_start_ratio,
    )
