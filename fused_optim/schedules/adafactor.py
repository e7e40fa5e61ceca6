"""The schedule that Adafactor makes for itself, shown through a scheduler's interface."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from .build import RatesMet, ResumableLambdaLR, write_lr
from .lambdas import constant


class AdafactorSchedule(ResumableLambdaLR):
    """Report the learning rates that Adafactor chose, for loops and loggers that want a scheduler.

    `get_lr()` and, after each `step()`, `get_last_lr()` hold one float per parameter group: the
    rate alpha that the first parameter of the group took in its last step (with
    `scale_parameter=True` every parameter has its own; a frozen one has none, so the first that
    moves counts), or `initial_lr` for a group where none has stepped yet. Gradients play no part,
    so the report is the same after `zero_grad()`, in the middle of an accumulation, or after a step
    that was skipped. Reading alpha back may wait for the device, once per group.

    As in transformers, the reported value is written to `group["lr"]`, which becomes `initial_lr`
    at construction; with `relative_step=True` the optimizer never uses it. A group with
    `relative_step=False` does use it, as its base rate, and a write-back would multiply that rate
    by RMS(p) at every step (or set it to 0 for good). There the schedule reports only:
    `group["lr"]` is never touched, and stays free for another scheduler.

    Source: `AdafactorSchedule` of transformers.

    Args:
        optimizer: this package's Adafactor, or another optimizer with a method
            `effective_lr(group) -> float | None`.
        initial_lr: what to report for a group before its first step.

    Raises:
        TypeError: if the optimizer has no `effective_lr`.

    Example:
        >>> import torch
        >>> from fused_optim import Adafactor
        >>> from fused_optim.schedules import AdafactorSchedule
        >>> optimizer = Adafactor([torch.nn.Parameter(torch.ones(2))])
        >>> AdafactorSchedule(optimizer, initial_lr=0.5).get_last_lr()
        [0.5]
    """

    def __init__(self, optimizer: Optimizer, initial_lr: float = 0.0) -> None:
        """See the class."""
        if not callable(getattr(optimizer, "effective_lr", None)):
            raise TypeError(
                f"AdafactorSchedule: {type(optimizer).__name__} has no effective_lr(group) to "
                "report. Pass fused_optim.Adafactor itself, not a wrapper around it; for an "
                "optimizer with a learning rate of its own, use get_scheduler."
            )
        self.initial_lr = float(initial_lr)
        RatesMet.of(optimizer)  # before the key below makes it look like a restored one
        # LRScheduler takes its base rates from this key, and needs it during construction only; a
        # value that was there is another scheduler's, which resumes from it.
        before = [group.pop("initial_lr", None) for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["initial_lr"] = self.initial_lr
        super().__init__(optimizer, constant)
        for group, initial_lr_before in zip(optimizer.param_groups, before, strict=True):
            del group["initial_lr"]
            if initial_lr_before is not None:
                group["initial_lr"] = initial_lr_before

    def get_lr(self) -> list[float]:
        """Return one float per parameter group: its last alpha, or `initial_lr` before any."""
        return [self._group_lr(group) for group in self.optimizer.param_groups]

    def _group_lr(self, group: dict[str, Any]) -> float:
        alpha = self.optimizer.effective_lr(group) if group["params"] else None
        return self.initial_lr if alpha is None else float(alpha)

    def step(self, epoch: int | None = None) -> None:
        """Read the learning rates again.

        Args:
            epoch: sets `last_epoch`, which otherwise goes up by one.
        """
        # Not LRScheduler.step: that writes to every group, and warns about calls before the
        # optimizer's first step, which are no mistake here.
        self._step_count += 1
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            self._write_lr(group, lr)

    def _write_lr(self, group: dict[str, Any], lr: float | Tensor) -> None:
        if group.get("relative_step", True):
            write_lr(group, lr)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state, one saved by transformers too, whose rates may be tensors.

        Args:
            state_dict: what `state_dict()` returned.
        """
        last_lr = [float(lr) for lr in state_dict["_last_lr"]]
        super().load_state_dict({**state_dict, "_last_lr": last_lr})


def get_adafactor_schedule(optimizer: Optimizer, initial_lr: float = 0.0) -> AdafactorSchedule:
    """Return `AdafactorSchedule(optimizer, initial_lr)`.

    Source: `get_adafactor_schedule` of transformers.

    Args:
        optimizer: an Adafactor.
        initial_lr: what to report for a group before its first step.

    Returns:
        The schedule.

    Raises:
        TypeError: if the optimizer has no `effective_lr`.
    """
    return AdafactorSchedule(optimizer, initial_lr)
