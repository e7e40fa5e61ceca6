"""TensorFlow's schedules: callables of the step that return the learning rate itself, no factor.

An optimizer that takes a callable learning rate (`AdamWeightDecay`) evaluates them at its own step
count, which starts at 0. They compute in Python floats, where TensorFlow uses float32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any


class _Config:
    """The `get_config` of both schedules."""

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments by name: `type(s)(**s.get_config()) == s`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class PolynomialDecay(_Config):
    """Polynomial decay from `initial_learning_rate` to `end_learning_rate` over `decay_steps`.

    With `D = decay_steps` and the step `s`:

        lr(s) = end + (initial - end) * (1 - min(s, D) / D)**power
        lr(s) = end + (initial - end) * (1 - s / D')**power,    if cycle

    where `D'` is `D` times the least positive integer that makes it `s` or more, so that the rate
    jumps up again, less high each time, after every `D` steps.

    Two corners are TensorFlow's own: `decay_steps=0` is 0/0 and gives NaN at every step (so
    `WarmUp` before it, over all of training, is fine: it is never asked), and a negative
    `decay_steps` gives `end_learning_rate`.

    Source: `tf.keras.optimizers.schedules.PolynomialDecay`.

    Args:
        initial_learning_rate: the rate at step 0.
        decay_steps: steps to reach the end rate in.
        end_learning_rate: the rate from `decay_steps` on.
        power: exponent of the decay, 1.0 for a straight line; not negative.
        cycle: whether to start over instead of holding the end rate.
        name: kept for `get_config`, of no effect.

    Example:
        >>> from fused_optim.schedules import PolynomialDecay
        >>> schedule = PolynomialDecay(1.0, decay_steps=4, end_learning_rate=0.0)
        >>> [schedule(step) for step in range(6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    initial_learning_rate: float
    decay_steps: float
    end_learning_rate: float = 0.0001
    power: float = 1.0
    cycle: bool = False
    name: str | None = None

    def __call__(self, step: float) -> float:
        """Return the learning rate at `step`, which counts from 0."""
        if self.decay_steps == 0:
            return math.nan
        if self.cycle:
            # Step 0 belongs to the first cycle, although the ceiling of 0 is 0.
            cycles = 1 if step == 0 else math.ceil(step / self.decay_steps)
            progress = step / (self.decay_steps * cycles)
        else:
            progress = min(step, self.decay_steps) / self.decay_steps
        drop = self.initial_learning_rate - self.end_learning_rate
        return drop * (1.0 - progress) ** self.power + self.end_learning_rate


@dataclass(frozen=True)
class WarmUp(_Config):
    """Polynomial warm-up from 0 to `initial_learning_rate`, then another schedule, from its start.

        lr(s) = initial_learning_rate * (s / warmup_steps)**power,  if s < warmup_steps
        lr(s) = decay_schedule_fn(s - warmup_steps),                otherwise

    `initial_learning_rate` is the peak. The rate jumps there if `decay_schedule_fn(0)` is another.
    `warmup_steps=0` is no warm-up. Nothing is validated. The schedule pickles if
    `decay_schedule_fn` does.

    Source: `WarmUp` of the transformers TensorFlow optimization module.

    Args:
        initial_learning_rate: the rate that the warm-up leads to.
        decay_schedule_fn: callable of the step, counted from the end of the warm-up.
        warmup_steps: length of the warm-up.
        power: exponent of the warm-up, 1.0 for a straight line; not negative.
        name: kept for `get_config`, of no effect.

    Example:
        >>> from fused_optim.schedules import PolynomialDecay, WarmUp
        >>> schedule = WarmUp(1.0, PolynomialDecay(1.0, 4, end_learning_rate=0.0), warmup_steps=2)
        >>> [schedule(step) for step in range(7)]
        [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """

    initial_learning_rate: float
    decay_schedule_fn: Callable[[float], float]
    warmup_steps: float
    power: float = 1.0
    name: str | None = None

    def __call__(self, step: float) -> float:
        """Return the learning rate at `step`, which counts from 0."""
        if step < self.warmup_steps:
            return self.initial_learning_rate * (step / self.warmup_steps) ** self.power
        return self.decay_schedule_fn(step - self.warmup_steps)
