"""Learning-rate schedules: transformers' for `torch.optim`, and TensorFlow's as callables.

By default every schedule has the values of transformers' of the same name, bit for bit, at every
step. The pure functions behind them, step to factor, are in `fused_optim.schedules.lambdas`.
"""

from .adafactor import AdafactorSchedule, get_adafactor_schedule
from .basic import (
    get_constant_schedule,
    get_constant_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_reduce_on_plateau_schedule,
)
from .cosine import (
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
)
from .dispatch import SchedulerType, get_scheduler
from .greedy import GreedyLR, get_greedy_schedule
from .power import get_inverse_sqrt_schedule, get_polynomial_decay_schedule_with_warmup
from .steps import num_optimizer_steps
from .tensorflow import PolynomialDecay, WarmUp
from .wsd import get_wsd_schedule

__all__ = [
    "AdafactorSchedule",
    "GreedyLR",
    "PolynomialDecay",
    "SchedulerType",
    "WarmUp",
    "get_adafactor_schedule",
    "get_constant_schedule",
    "get_constant_schedule_with_warmup",
    "get_cosine_schedule_with_warmup",
    "get_cosine_with_hard_restarts_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
    "get_greedy_schedule",
    "get_inverse_sqrt_schedule",
    "get_linear_schedule_with_warmup",
    "get_polynomial_decay_schedule_with_warmup",
    "get_reduce_on_plateau_schedule",
    "get_scheduler",
    "get_wsd_schedule",
    "num_optimizer_steps",
]
