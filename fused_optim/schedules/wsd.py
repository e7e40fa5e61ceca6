"""The warmup-stable-decay schedule for `torch.optim`."""

import warnings

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from . import lambdas
from .build import check_choice, lambda_lr

_WARMUP_TYPES = ("linear", "cosine", "1-sqrt")
_DECAY_TYPES = (*_WARMUP_TYPES, "exp")


def get_wsd_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_decay_steps: int,
    num_training_steps: int | None = None,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    *,
    warmup_start_ratio: float | None = None,
) -> LambdaLR:
    """Return a scheduler with three phases: a warm-up, a constant rate, a decay.

    With the share `x` of a phase behind us and the ratio `r`, the factor is

        warm-up   r + (1 - r) * {x | (1 - cos(pi x)) / 2 | 1 - sqrt(1 - x)}
        stable    1
        decay     r + (1 - r) * {1 - x | (1 + cos(2 pi num_cycles x)) / 2 | 1 - sqrt(x)}, or r**x
        after     r

    for the types "linear", "cosine", "1-sqrt" and, decay only, "exp". The warm-up starts at `r`
    too, unless `warmup_start_ratio` is given.

    To branch a decay off a long stable phase, load the stable run's optimizer and scheduler state
    into a schedule whose `num_stable_steps` ends where that run stands: the lengths of the phases
    are not part of the saved state.

    Source: `get_wsd_schedule` of transformers; MiniCPM, https://arxiv.org/abs/2404.06395; 1-sqrt:
    Haegele et al., https://arxiv.org/abs/2405.18392.

    Args:
        optimizer: the optimizer to schedule.
        num_warmup_steps: length of the warm-up; 0 for none.
        num_decay_steps: length of the decay.
        num_training_steps: length of the whole; the stable phase is what the others leave.
        num_stable_steps: length of the stable phase; wins over `num_training_steps`.
        warmup_type: "linear", "cosine" or "1-sqrt".
        decay_type: "linear", "cosine", "1-sqrt" or "exp"; "exp" needs `min_lr_ratio > 0`.
        min_lr_ratio: the factor at the end, and at the start of the warm-up.
        num_cycles: waves of the cosine decay.
        last_epoch: the step to resume after, -1 to start.
        warmup_start_ratio: factor at step 0, where it is not to be `min_lr_ratio`.

    Returns:
        A LambdaLR.

    Raises:
        TypeError: if a group's learning rate is None.
        ValueError: if neither `num_training_steps` nor `num_stable_steps` is given, for an unknown
            type, if "exp" has no ratio to end at, or if the phases are longer than the training.

    Example:
        >>> import torch
        >>> from fused_optim.schedules import get_wsd_schedule
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=10.0)
        >>> scheduler = get_wsd_schedule(optimizer, 2, 2, num_training_steps=8)
        >>> [round(10.0 * scheduler.lr_lambdas[0](step), 2) for step in range(9)]
        [0.0, 5.0, 10.0, 10.0, 10.0, 10.0, 10.0, 5.0, 0.0]
    """
    if num_training_steps is None and num_stable_steps is None:
        raise ValueError(
            "get_wsd_schedule needs num_training_steps, to infer the stable phase, or "
            "num_stable_steps; neither is given."
        )
    if num_training_steps is not None and num_stable_steps is not None:
        warnings.warn(
            f"num_training_steps ({num_training_steps}) is ignored, because num_stable_steps "
            f"({num_stable_steps}) is given too.",
            stacklevel=2,
        )
    check_choice("warmup_type", warmup_type, _WARMUP_TYPES)
    check_choice("decay_type", decay_type, _DECAY_TYPES)
    if decay_type == "exp" and not min_lr_ratio > 0:
        raise ValueError(
            f"decay_type='exp' never reaches min_lr_ratio={min_lr_ratio}; pass a min_lr_ratio > 0, "
            "such as 0.01."
        )
    if num_stable_steps is None:
        num_stable_steps = _infer_stable(num_warmup_steps, num_decay_steps, num_training_steps)
    return lambda_lr(
        optimizer,
        lambdas.warmup_stable_decay,
        last_epoch,
        num_warmup_steps=num_warmup_steps,
        num_stable_steps=num_stable_steps,
        num_decay_steps=num_decay_steps,
        warmup_type=warmup_type,
        decay_type=decay_type,
        min_lr_ratio=min_lr_ratio,
        num_cycles=num_cycles,
        warmup_start_ratio=min_lr_ratio if warmup_start_ratio is None else warmup_start_ratio,
    )


def _infer_stable(num_warmup_steps: int, num_decay_steps: int, num_training_steps: int) -> int:
    num_stable_steps = num_training_steps - num_warmup_steps - num_decay_steps
    if num_stable_steps < 0:
        raise ValueError(
            f"num_warmup_steps ({num_warmup_steps}) + num_decay_steps ({num_decay_steps}) exceed "
            f"num_training_steps ({num_training_steps}), so that the decay would start partway "
            f"down. Pass num_training_steps >= {num_warmup_steps + num_decay_steps}, shorten a "
            "phase, or set num_stable_steps yourself."
        )
    return num_stable_steps
