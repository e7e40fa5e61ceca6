"""Schedules by name."""

from enum import Enum
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

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
from .greedy import get_greedy_schedule
from .power import get_inverse_sqrt_schedule, get_polynomial_decay_schedule_with_warmup
from .wsd import get_wsd_schedule


class SchedulerType(str, Enum):  # noqa: UP042  StrEnum would change str() and repr() of the members
    """The names that `get_scheduler` knows; a member equals its string.

    Source: `SchedulerType` of transformers.
    """

    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    INVERSE_SQRT = "inverse_sqrt"
    REDUCE_ON_PLATEAU = "reduce_lr_on_plateau"
    COSINE_WITH_MIN_LR = "cosine_with_min_lr"
    COSINE_WARMUP_WITH_MIN_LR = "cosine_warmup_with_min_lr"
    WARMUP_STABLE_DECAY = "warmup_stable_decay"
    GREEDY = "greedy"

    @classmethod
    def _missing_(cls, value: object) -> "SchedulerType":
        names = ", ".join(member.value for member in cls)
        raise ValueError(f"{value!r} is not a valid SchedulerType; the names are {names}.")


# The schedules that follow a metric, and count no steps.
_OF_A_METRIC = {
    SchedulerType.REDUCE_ON_PLATEAU: get_reduce_on_plateau_schedule,
    SchedulerType.GREEDY: get_greedy_schedule,
}
# The schedules that take both step counts. The others are branches of get_scheduler.
_WITH_BOTH_COUNTS = {
    SchedulerType.LINEAR: get_linear_schedule_with_warmup,
    SchedulerType.COSINE: get_cosine_schedule_with_warmup,
    SchedulerType.COSINE_WITH_RESTARTS: get_cosine_with_hard_restarts_schedule_with_warmup,
    SchedulerType.POLYNOMIAL: get_polynomial_decay_schedule_with_warmup,
    SchedulerType.COSINE_WITH_MIN_LR: get_cosine_with_min_lr_schedule_with_warmup,
    SchedulerType.COSINE_WARMUP_WITH_MIN_LR: get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
}


def get_scheduler(
    name: str | SchedulerType,
    optimizer: Optimizer,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    scheduler_specific_kwargs: dict[str, Any] | None = None,
) -> LambdaLR | ReduceLROnPlateau:
    """Return the schedule of that name.

    | name | needs |
    | --- | --- |
    | constant, reduce_lr_on_plateau, greedy | nothing; step counts are ignored |
    | constant_with_warmup, inverse_sqrt | num_warmup_steps |
    | warmup_stable_decay | num_warmup_steps, num_decay_steps in the kwargs, and |
    | | num_training_steps or num_stable_steps (kwargs) |
    | the others | num_warmup_steps and num_training_steps |

    As in transformers, "constant" ignores the keyword arguments, and so does
    "constant_with_warmup", but for `warmup_start_ratio`.

    Source: `get_scheduler` of transformers.

    Args:
        name: a SchedulerType or its value.
        optimizer: the optimizer to schedule.
        num_warmup_steps: length of the warm-up, in optimizer steps.
        num_training_steps: length of the training, in optimizer steps; see `num_optimizer_steps`.
        scheduler_specific_kwargs: further arguments of that schedule, `last_epoch` included.

    Returns:
        A LambdaLR, or a ReduceLROnPlateau, which GreedyLR is too.

    Raises:
        TypeError: for an argument that the schedule does not take or still lacks, and if a group's
            learning rate is None.
        ValueError: for an unknown name, a step count that the schedule needs, and whatever the
            schedule itself refuses.

    Example:
        >>> import torch
        >>> from fused_optim.schedules import get_scheduler
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=10.0)
        >>> scheduler = get_scheduler("inverse_sqrt", optimizer, 2, None, {"timescale": 10})
        >>> [round(10.0 * scheduler.lr_lambdas[0](step), 2) for step in (0, 1, 2, 12)]
        [0.0, 5.0, 10.0, 7.07]
    """
    name = SchedulerType(name)
    if name is SchedulerType.CONSTANT:
        return get_constant_schedule(optimizer)
    kwargs = scheduler_specific_kwargs or {}
    if name in _OF_A_METRIC:
        return _OF_A_METRIC[name](optimizer, **kwargs)

    _require(name, "num_warmup_steps", num_warmup_steps)
    if name is SchedulerType.CONSTANT_WITH_WARMUP:
        # transformers has no argument to pass on here; our own must not get lost.
        extra = {key: kwargs[key] for key in ("warmup_start_ratio",) if key in kwargs}
        return get_constant_schedule_with_warmup(optimizer, num_warmup_steps, **extra)
    if name is SchedulerType.INVERSE_SQRT:
        return get_inverse_sqrt_schedule(optimizer, num_warmup_steps=num_warmup_steps, **kwargs)
    counts = {"num_warmup_steps": num_warmup_steps, "num_training_steps": num_training_steps}
    if name is SchedulerType.WARMUP_STABLE_DECAY:
        return get_wsd_schedule(optimizer, **counts, **kwargs)

    _require(name, "num_training_steps", num_training_steps)
    return _WITH_BOTH_COUNTS[name](optimizer, **counts, **kwargs)


def _require(name: SchedulerType, parameter: str, value: int | None) -> None:
    if value is None:
        raise ValueError(f"The schedule {name.value!r} requires `{parameter}`; pass it too.")
