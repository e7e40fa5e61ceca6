"""What the schedule factories share: the scheduler class, the checks of the base rates."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

_NO_LR_REMEDY = (
    "so there is no base learning rate to scale. Adafactor with relative_step=True makes its own "
    "schedule: use AdafactorSchedule(optimizer), which reports it, or give the optimizer an lr "
    "(for Adafactor: relative_step=False, lr=1e-3)"
)


class ResumableLambdaLR(LambdaLR):
    """LambdaLR whose `load_state_dict` also gives the learning rate back to the optimizer.

    Constructing any scheduler writes the rate of step 0 into the optimizer. torch's
    `load_state_dict` leaves it there until the next `step()`, so that a scheduler which is created
    after the optimizer was restored takes its first resumed step at the wrong rate (0 with a
    warm-up). Here both orders resume alike.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the schedule's position, and the optimizer's learning rates with it.

        Args:
            state_dict: what `state_dict()` returned. The schedule's own parameters (warm-up steps
                and the like) are not part of it; they are those of this scheduler's construction.
        """
        super().load_state_dict(state_dict)
        # Not strict: a count that differs fails in LambdaLR's next step, with torch's own message.
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=False):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(float(lr))  # in place: a captured graph may read this tensor
            else:
                group["lr"] = float(lr)


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
