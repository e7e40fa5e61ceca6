"""What the schedule factories share: the scheduler class, the checks of the base rates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

_NO_LR_REMEDY = (
    "so there is no base learning rate to scale. Adafactor with relative_step=True makes its own "
    "schedule: use AdafactorSchedule(optimizer), which reports it, or give the optimizer an lr "
    "(for Adafactor: relative_step=False, lr=1e-3)"
)


@dataclass(frozen=True)
class RatesMet:
    """The learning rates that an optimizer had when the first of our schedules was made for it."""

    # `Optimizer.load_state_dict` puts new groups into a new list, which tells that it was called.
    groups: list[dict[str, Any]]
    rates: list[float | Tensor | None]  # None in a group that no scheduler had touched

    @classmethod
    def of(cls, optimizer: Optimizer) -> RatesMet:
        """Return what the first schedule met, or what there is if `optimizer` was loaded since."""
        met = getattr(optimizer, "_rates_met_by_schedules", None)
        if met is None or met.groups is not optimizer.param_groups:
            # Any scheduler leaves "initial_lr" behind, and a restored optimizer has it back.
            rates = [
                copy.deepcopy(group["lr"]) if "initial_lr" in group else None
                for group in optimizer.param_groups
            ]
            met = cls(optimizer.param_groups, rates)
            optimizer._rates_met_by_schedules = met
        return met


class ResumableLambdaLR(LambdaLR):
    """LambdaLR whose `load_state_dict` undoes what constructing it did to a restored optimizer.

    Constructing any scheduler writes the rate of step 0 into the optimizer. torch's
    `load_state_dict` leaves it there until the next `step()`, so that a scheduler which is created
    after the optimizer was restored takes its first resumed step at the wrong rate (0 with a
    warm-up). Here the state's rate goes back into the optimizer.

    An optimizer that was loaded after the construction has the right rates already, and keeps
    them. They need not be this schedule's: within a `SequentialLR` or a `ChainedScheduler`, which
    load all their schedules, a schedule may have had its turn, wait for it, or hold one factor of
    several. So an optimizer that was restored before gets back the rates that it came with, from
    the schedule whose state has them.
    """

    _met: RatesMet | None = None

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | list[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        self._met = RatesMet.of(optimizer)
        super().__init__(optimizer, lr_lambda, last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, under LambdaLR's keys."""
        return {key: value for key, value in super().state_dict().items() if key != "_met"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the schedule's position, and the rates that its construction overwrote.

        Args:
            state_dict: what `state_dict()` returned. The schedule's own parameters (warm-up steps
                and the like) are not part of it; they are those of this scheduler's construction.
        """
        super().load_state_dict(state_dict)
        groups = self.optimizer.param_groups
        if self._met is None or groups is not self._met.groups:
            return
        if self.last_epoch < 0:  # its turn in a SequentialLR has not come
            return
        # Not strict: a count that differs fails in LambdaLR's next step, with torch's own message.
        for group, met, lr in zip(groups, self._met.rates, self._last_lr, strict=False):
            if met is None or _equal_rates(met, lr):
                self._write_lr(group, lr)

    def _write_lr(self, group: dict[str, Any], lr: float | Tensor) -> None:
        write_lr(group, lr)


def write_lr(group: dict[str, Any], lr: float | Tensor) -> None:
    """Set a group's learning rate: in place if it is a tensor, which a captured graph may read."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(float(lr))
    else:
        group["lr"] = float(lr)


def _equal_rates(met: float | Tensor, lr: float | Tensor) -> bool:
    """Return whether `lr`, rounded as in the group where `met` was, is `met`."""
    if isinstance(met, Tensor):
        lr = torch.tensor(float(lr), dtype=met.dtype)
    return float(met) == float(lr)


def lambda_lr(
    optimizer: Optimizer, factor: Callable[..., float], last_epoch: int, **bound: Any
) -> LambdaLR:
    """Return the scheduler that multiplies every group's base rate by `factor(step, **bound)`.

    Args:
        optimizer: the optimizer whose learning rates to write.
        factor: a module-level function, so that the scheduler pickles.
        last_epoch: the step to resume after, -1 to start.
        **bound: the keywords to bind.

    Raises:
        TypeError: if a group has no learning rate.
    """
    require_group_lrs(optimizer)
    # A plain function where nothing is bound: its entry in the saved state is None, as with
    # transformers, and a partial's is {}.
    return ResumableLambdaLR(optimizer, partial(factor, **bound) if bound else factor, last_epoch)


def require_group_lrs(optimizer: Optimizer) -> None:
    """Raise TypeError, with the remedy, if a group's learning rate is None."""
    for index, group in enumerate(optimizer.param_groups):
        # "initial_lr", where an earlier scheduler left it, is what torch takes as the base rate.
        if group.get("initial_lr", group["lr"]) is None:
            raise TypeError(f"param_groups[{index}]['lr'] is None, {_NO_LR_REMEDY}.")


def check_choice(parameter: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ValueError if a parameter's value is none of the known ones."""
    if value not in known:
        raise ValueError(f"{parameter} is {value!r}, it must be one of {', '.join(known)}.")


def default_lr(optimizer: Optimizer) -> float:
    """Return the optimizer's own `lr` argument, as it was before any scheduler touched it.

    Raises:
        KeyError: if the optimizer has no `lr` argument.
        TypeError: if it is None.
    """
    lr = optimizer.defaults["lr"]
    if lr is None:
        raise TypeError(f"optimizer.defaults['lr'] is None, {_NO_LR_REMEDY}.")
    if not isinstance(lr, Tensor):
        return lr
    # torch shares one tensor between the defaults and the groups, and schedulers fill it in place:
    # by now it may hold a scheduled rate, while "initial_lr" is a clone of what it was.
    for group in optimizer.param_groups:
        if group["lr"] is lr and "initial_lr" in group:
            return float(group["initial_lr"])
    return float(lr)
