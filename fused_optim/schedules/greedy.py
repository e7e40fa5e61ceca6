"""GreedyLR: a rate that rises while a metric improves, and falls while it does not."""

from __future__ import annotations

import copy
from typing import Any, SupportsFloat

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from .build import check_choice, require_group_lrs, write_lr

# What a state dict has, in transformers' order.
_SAVED = (
    *("factor", "min_lrs", "max_lrs", "patience", "verbose", "cooldown", "warmup"),
    *("cooldown_counter", "warmup_counter", "mode", "threshold", "threshold_mode", "best"),
    *("num_bad_epochs", "num_good_epochs", "eps", "last_epoch", "smooth", "window_size"),
    *("reset_start", "reset_start_original", "_last_lr", "_init_lrs"),
)


class GreedyLR(ReduceLROnPlateau):
    """Divide the learning rate by a factor while a metric improves, multiply while it does not.

    `step` takes the metric. More than `patience` improvements in a row raise every group's rate,
    to `max_lr` at most; more than `patience` steps in a row without one lower it, to `min_lr` at
    least. Once every group has arrived at `min_lr`, the `reset_start`-th lowering puts back the
    rates that the optimizer had at construction and forgets the metrics.

    It is a ReduceLROnPlateau, so that loops which know that class (the transformers Trainer,
    Lightning) hand it their metric.

    Source: `GreedyLR` of transformers; https://arxiv.org/abs/2512.14527.

    Args:
        optimizer: the optimizer to schedule.
        mode: "min" if a smaller metric is better, "max" if a larger one is.
        factor: of a lowering; a raise divides by it. Between 0 and 1, both excluded.
        patience: steps in a row that change nothing yet.
        threshold: how much better than the best a metric has to be to count as an improvement.
        threshold_mode: "abs" adds the threshold to the best, "rel" takes it as a share of the best.
        cooldown: steps after a lowering whose metrics are not looked at.
        warmup: steps after a raise whose metrics are not looked at.
        min_lr: lower bound of the rates, or one for each group.
        max_lr: upper bound of the rates, or one for each group.
        eps: changes of a rate that are not larger are left out.
        verbose: print every change.
        smooth: judge the mean of the last `window_size` metrics instead of the metric.
        window_size: length of that window.
        reset_start: lowerings with every rate at its lower bound until everything starts again.

    Raises:
        TypeError: if `optimizer` is none.
        ValueError: if an argument is out of range, unknown, or of another length than the groups.

    Example:
        >>> import torch
        >>> from fused_optim.schedules import GreedyLR
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
        >>> scheduler = GreedyLR(optimizer, factor=0.5, patience=1)
        >>> rates = []
        >>> for loss in (4.0, 3.0, 2.0, 2.0, 2.0):
        ...     scheduler.step(loss)
        ...     rates += scheduler.get_last_lr()
        >>> rates
        [0.5, 1.0, 1.0, 1.0, 0.5]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.95,
        patience: int = 10,
        threshold: float = 1e-6,
        threshold_mode: str = "abs",
        cooldown: int = 0,
        warmup: int = 0,
        min_lr: float | list[float] = 1e-3,
        max_lr: float | list[float] = 1.0,
        eps: float = 1e-8,
        verbose: bool = False,
        smooth: bool = False,
        window_size: int = 50,
        reset_start: int = 500,
    ) -> None:
        _check_numbers(factor, patience, cooldown, warmup, window_size, reset_start)
        check_choice("mode", mode, ("min", "max"))
        check_choice("threshold_mode", threshold_mode, ("rel", "abs"))
        self.warmup = warmup
        self.verbose = verbose
        self.smooth = smooth
        self.window_size = window_size
        self.reset_start = self.reset_start_original = reset_start
        super().__init__(
            optimizer, mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps
        )
        self._set_upper_bounds(min_lr, max_lr)
        self._last_lr = self._rates()
        self._init_lrs = self._rates()

    def _set_upper_bounds(self, min_lr: float | list[float], max_lr: float | list[float]) -> None:
        """Do for `max_lr` what ReduceLROnPlateau has done for `min_lr`, and compare the two."""
        count = len(self.optimizer.param_groups)
        if isinstance(max_lr, (list, tuple)) and len(max_lr) != count:
            raise ValueError(f"expected {count} max_lrs, got {len(max_lr)}")
        # None where each group has a bound of its own, so that there is none for a new group.
        self.default_min_lr, self.default_max_lr = (
            None if isinstance(bound, (list, tuple)) else bound for bound in (min_lr, max_lr)
        )
        self.max_lrs = [max_lr] * count if self.default_max_lr is not None else list(max_lr)
        for index, (low, high) in enumerate(zip(self.min_lrs, self.max_lrs, strict=True)):
            if low > high:
                raise ValueError(
                    f"min_lr is {low} and max_lr is {high} for param_groups[{index}]; no rate lies "
                    "between them. Lower min_lr or raise max_lr."
                )

    def _rates(self) -> list[Any]:
        """Return the groups' rates; tensors are copied, for schedulers write to them."""
        return [copy.deepcopy(group["lr"]) for group in self.optimizer.param_groups]

    def _reset(self) -> None:
        """Forget the metrics."""
        super()._reset()
        self.num_good_epochs = 0
        self.warmup_counter = 0
        self.reset_start = self.reset_start_original
        self._window: list[float] = []
        self._window_sum = 0.0

    def step(self, metrics: SupportsFloat, epoch: int | None = None) -> None:
        """Take a metric, and change the learning rates if it is time.

        Args:
            metrics: the metric; a tensor of one element is read.
            epoch: sets `last_epoch`, which otherwise goes up by one.
        """
        self._meet_new_groups()
        current = float(metrics)
        if self.smooth:
            current = self._smoothed(current)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        if self._waits():
            self.num_bad_epochs = self.num_good_epochs = 0
        else:
            self._judge(current)
        self._last_lr = self._rates()

    def _waits(self) -> bool:
        """Count a step of a cooldown or a warm-up; returns False if it is in neither."""
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
        elif self.warmup_counter > 0:
            self.warmup_counter -= 1
        else:
            return False
        return True

    def _judge(self, current: float) -> None:
        if self._is_better(current, self.best):
            self.best = current
            self.num_bad_epochs = 0
            self.num_good_epochs += 1
        else:
            self.num_bad_epochs += 1
            self.num_good_epochs = 0
        if self.num_good_epochs > self.patience:
            self._increase_lr(self.last_epoch)
            self.warmup_counter = self.warmup
            self.num_good_epochs = 0
        elif self.num_bad_epochs > self.patience:
            self._reduce_lr(self.last_epoch)
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0

    def _smoothed(self, metric: float) -> float:
        """Return the mean of the last `window_size` metrics, this one included."""
        self._window.append(metric)
        # A running sum and not a new one: its rounding errors are part of the reference's values.
        self._window_sum += metric
        if len(self._window) > self.window_size:
            self._window_sum -= self._window.pop(0)
        return self._window_sum / len(self._window)

    def _increase_lr(self, epoch: int) -> None:
        for index, group in enumerate(self.optimizer.param_groups):
            old = float(group["lr"])
            new = min(old / self.factor, self.max_lrs[index])
            if new - old > self.eps:
                self._change(index, new, epoch)
        self.reset_start = self.reset_start_original

    def _reduce_lr(self, epoch: int) -> None:
        groups = self.optimizer.param_groups
        for index, group in enumerate(groups):
            old = float(group["lr"])
            new = max(old * self.factor, self.min_lrs[index])
            if old - new > self.eps:
                self._change(index, new, epoch)
        # A tensor compares in its own dtype, in which it can be equal to the bound.
        if any(group["lr"] > low for group, low in zip(groups, self.min_lrs, strict=True)):
            return
        self.reset_start -= 1
        if self.reset_start <= 0:
            for group, lr in zip(groups, self._init_lrs, strict=True):
                write_lr(group, lr)
            self._reset()
            if self.verbose:
                print(f"GreedyLR, step {epoch}: back to the rates of the start")

    def _change(self, index: int, lr: float, epoch: int) -> None:
        write_lr(self.optimizer.param_groups[index], lr)
        if self.verbose:
            print(f"GreedyLR, step {epoch}: group {index} has learning rate {lr:.4e}")

    def _meet_new_groups(self) -> None:
        """Give groups that were added to the optimizer the bounds that hold for all of them."""
        rates = self._rates()
        for name, default in (("min_lr", self.default_min_lr), ("max_lr", self.default_max_lr)):
            bounds = getattr(self, f"{name}s")
            missing = len(rates) - len(bounds)
            if missing > 0 and default is None:
                raise RuntimeError(
                    f"The optimizer has {len(rates)} parameter groups, and {name} was given to "
                    f"GreedyLR as a list of {len(bounds)}. Append the new groups' bounds to "
                    f"scheduler.{name}s, or construct GreedyLR with one number for all groups."
                )
            bounds += [default] * missing
        self._init_lrs += rates[len(self._init_lrs) :]

    def state_dict(self) -> dict[str, Any]:
        """Return the state, under the keys of transformers' GreedyLR."""
        state = {name: copy.deepcopy(getattr(self, name)) for name in _SAVED}
        if self.smooth:
            state["_streaming_avg"] = {
                "window_size": self.window_size,
                "values": list(self._window),
                "sum": self._window_sum,
            }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state, one saved by transformers too, and the optimizer's rates with it.

        Args:
            state_dict: what `state_dict()` returned: the options are part of it. What it lacks
                stays as it is.
        """
        count, saved = len(self.optimizer.param_groups), state_dict.get("_last_lr", ())
        if len(saved) > count:
            raise ValueError(
                f"The state is of an optimizer with {len(saved)} parameter groups, and this one "
                f"has {count}. Construct the optimizer as it was when the state was saved."
            )
        for name in _SAVED:
            setattr(self, name, copy.deepcopy(state_dict.get(name, getattr(self, name))))
        self._init_is_better(self.mode, self.threshold, self.threshold_mode)
        if "_streaming_avg" in state_dict:
            self._window = list(state_dict["_streaming_avg"]["values"])
            self._window_sum = state_dict["_streaming_avg"]["sum"]
        # Not strict: groups that were added since keep their own rates.
        for group, lr in zip(self.optimizer.param_groups, saved, strict=False):
            write_lr(group, lr)


def get_greedy_schedule(optimizer: Optimizer, **kwargs: Any) -> GreedyLR:
    """Return `GreedyLR(optimizer, **kwargs)`, whose `step` takes the metric.

    Source: `get_greedy_schedule` of transformers.

    Args:
        optimizer: the optimizer to schedule.
        **kwargs: arguments of `GreedyLR` (`factor`, `patience`).

    Returns:
        A GreedyLR.

    Raises:
        TypeError: if a group's learning rate is None.
        ValueError: if an argument is out of range.
    """
    require_group_lrs(optimizer)
    return GreedyLR(optimizer, **kwargs)


def _check_numbers(factor: float, *counts: int) -> None:
    """Raise ValueError for numbers out of range; `counts` are the constructor's, in its order."""
    if not 0.0 < factor < 1.0:
        raise ValueError(
            f"factor is {factor}; it must be between 0 and 1, both excluded, as a lowering "
            "multiplies by it and a raise divides by it."
        )
    names = ("patience", "cooldown", "warmup", "window_size", "reset_start")
    for name, count, least in zip(names, counts, (0, 0, 0, 1, 0), strict=True):
        if not count >= least:
            raise ValueError(f"{name} is {count}; it must be at least {least}.")
