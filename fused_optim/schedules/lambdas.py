"""The schedules as pure functions: a step number in, a factor of the base learning rate out.

They need no optimizer and keep no state, and everything but the step is keyword-only:
`functools.partial(linear_with_warmup, num_warmup_steps=100, num_training_steps=1000)` is a
picklable callable of the step, fit for `torch.optim.lr_scheduler.LambdaLR`.

Note [order of operations]: each expression is written in the order that transformers evaluates it,
so that every factor has the same bits. `a * b / c` and `a / c * b` are not the same float. The
extras cost no bits where they are off: `0.0 + 1.0 * x` is exactly `x`.

`W` is `num_warmup_steps`, `T` is `num_training_steps` and `s` the step in the formulas below. A
warm-up is linear from `warmup_start_ratio` (0 by default) to 1 over the steps `s < W`.
"""

import math


def _linear_warmup(step: float, num_warmup_steps: float, start_ratio: float) -> float:
    progress = float(step) / float(max(1, num_warmup_steps))
    return start_ratio + (1.0 - start_ratio) * progress


def _decay_progress(step: float, num_warmup_steps: float, num_training_steps: float) -> float:
    """Share of the decay phase behind us; past the last training step it exceeds 1."""
    # At least 1, because T == W leaves no decay phase at all.
    return float(step - num_warmup_steps) / float(max(1, num_training_steps - num_warmup_steps))


def constant(step: float) -> float:
    """Return 1 at every step."""
    return 1.0


def constant_with_warmup(
    step: float, *, num_warmup_steps: float, warmup_start_ratio: float = 0.0
) -> float:
    """Return the warm-up, then 1."""
    if step < num_warmup_steps:
        return _linear_warmup(step, num_warmup_steps, warmup_start_ratio)
    return 1.0


def linear_with_warmup(
    step: float,
    *,
    num_warmup_steps: float,
    num_training_steps: float,
    warmup_start_ratio: float = 0.0,
) -> float:
    """Return the warm-up, then `max(0, (T - s) / (T - W))`."""
    if step < num_warmup_steps:
        return _linear_warmup(step, num_warmup_steps, warmup_start_ratio)
    decay_steps = float(max(1, num_training_steps - num_warmup_steps))
    return max(0.0, float(num_training_steps - step) / decay_steps)


def cosine_with_warmup(
    step: float,
    *,
    num_warmup_steps: float,
    num_training_steps: float,
    num_cycles: float = 0.5,
    min_lr_rate: float = 0.0,
    warmup_start_ratio: float = 0.0,
    hold_final_lr: bool = False,
) -> float:
    """Return the warm-up, then `r + (1 - r) * (1 + cos(2 pi num_cycles x)) / 2`, at least 0.

    Here `r` is `min_lr_rate` and `x = (s - W) / (T - W)`. Past `T` the wave goes on, so the factor
    rises again, unless `hold_final_lr` keeps `x` at 1.
    """
    if step < num_warmup_steps:
        return _linear_warmup(step, num_warmup_steps, warmup_start_ratio)
    progress = _decay_progress(step, num_warmup_steps, num_training_steps)
    if hold_final_lr:
        progress = min(1.0, progress)
    wave = 0.5 * (1.0 + math.cos(math.pi * float(num_cycles) * 2.0 * progress))
    return max(0.0, wave * (1 - min_lr_rate) + min_lr_rate)


def cosine_with_hard_restarts(
    step: float,
    *,
    num_warmup_steps: float,
    num_training_steps: float,
    num_cycles: float = 1,
    warmup_start_ratio: float = 0.0,
) -> float:
    """Return the warm-up, then `(1 + cos(pi ((num_cycles x) mod 1))) / 2`, and 0 from `T` on."""
    if step < num_warmup_steps:
        return _linear_warmup(step, num_warmup_steps, warmup_start_ratio)
    progress = _decay_progress(step, num_warmup_steps, num_training_steps)
    if progress >= 1.0:
        return 0.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((float(num_cycles) * progress) % 1.0))))


def cosine_from_first_step(
    step: float,
    *,
    num_warmup_steps: float,
    num_training_steps: float,
    num_cycles: float = 0.5,
    min_lr_rate: float = 0.0,
    warmup_lr_rate: float | None = None,
    hold_final_lr: bool = False,
) -> float:
    """Return `cosine_with_warmup` one step ahead: no step at 0, the minimum at `s = T - 1`.

    The warm-up is `(s + 1) / W`, or linear from `warmup_lr_rate` at `s = 0` to 1 at `s = W - 1`.
    """
    step, warmup_steps = float(step), float(num_warmup_steps)
    if step < warmup_steps:
        if warmup_lr_rate is None:
            return (step + 1.0) / max(1.0, warmup_steps)
        start = float(warmup_lr_rate)
        return start + (1.0 - start) * step / max(1.0, warmup_steps - 1.0)
    progress = (step - warmup_steps + 1.0) / max(1.0, float(num_training_steps) - warmup_steps)
    if hold_final_lr:
        progress = min(1.0, progress)
    wave = 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * progress))
    return max(0.0, wave * (1 - min_lr_rate) + min_lr_rate)


def polynomial_decay(
    step: float,
    *,
    num_warmup_steps: float,
    num_training_steps: float,
    lr_init: float,
    lr_end: float = 1e-7,
    power: float = 1.0,
    warmup_start_ratio: float = 0.0,
) -> float:
    """Return the warm-up, then `(lr_end + (lr_init - lr_end) (1 - x)**power) / lr_init`.

    Here `x = (s - W) / (T - W)`; past `T` the factor is `lr_end / lr_init`. `T == W` has no value
    at `s = T` and raises ZeroDivisionError there.
    """
    if step < num_warmup_steps:
        return _linear_warmup(step, num_warmup_steps, warmup_start_ratio)
    if step > num_training_steps:
        return lr_end / lr_init
    decay_steps = num_training_steps - num_warmup_steps
    remaining = 1 - (step - num_warmup_steps) / decay_steps
    return ((lr_init - lr_end) * remaining**power + lr_end) / lr_init


def inverse_sqrt(
    step: float, *, num_warmup_steps: float, timescale: float, warmup_start_ratio: float = 0.0
) -> float:
    """Return the warm-up, then `1 / sqrt((s - W + timescale) / timescale)`."""
    if step < num_warmup_steps:
        return _linear_warmup(step, num_warmup_steps, warmup_start_ratio)
    shift = timescale - num_warmup_steps
    return 1.0 / math.sqrt((step + shift) / timescale)


def warmup_stable_decay(
    step: float,
    *,
    num_warmup_steps: float,
    num_stable_steps: float,
    num_decay_steps: float,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0.0,
    num_cycles: float = 0.5,
    warmup_start_ratio: float = 0.0,
) -> float:
    """Return a rise from `warmup_start_ratio` to 1, then 1, then a fall to `min_lr_ratio`.

    With the share `x` of a phase behind us, the warm-up types rise as `x` ("linear"),
    `(1 - cos(pi x)) / 2` ("cosine") or `1 - sqrt(1 - x)` ("1-sqrt"); the decay types fall as
    `1 - x` ("linear"), `(1 + cos(2 pi num_cycles x)) / 2` ("cosine") or `1 - sqrt(x)` ("1-sqrt"),
    each then squeezed between the ratio and 1; "exp" falls as `min_lr_ratio**x`.
    """
    if step < num_warmup_steps:
        progress = float(step) / float(max(1, num_warmup_steps))
        factor = _wsd_rise(progress, warmup_type)
        return max(0.0, factor * (1.0 - warmup_start_ratio) + warmup_start_ratio)
    if step < num_warmup_steps + num_stable_steps:
        return 1.0
    if step < num_warmup_steps + num_stable_steps + num_decay_steps:
        into_decay = float(step - num_warmup_steps - num_stable_steps)
        progress = into_decay / float(max(1, num_decay_steps))
        if decay_type == "exp":
            return min_lr_ratio**progress
        factor = _wsd_fall(progress, decay_type, num_cycles)
        return max(0.0, factor * (1.0 - min_lr_ratio) + min_lr_ratio)
    return min_lr_ratio


def _wsd_rise(progress: float, warmup_type: str) -> float:
    if warmup_type == "linear":
        return progress
    if warmup_type == "cosine":
        return 0.5 * (1.0 - math.cos(math.pi * progress))
    return 1.0 - math.sqrt(1.0 - progress)


def _wsd_fall(progress: float, decay_type: str, num_cycles: float) -> float:
    if decay_type == "linear":
        return 1.0 - progress
    if decay_type == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * float(num_cycles) * 2.0 * progress))
    return 1.0 - math.sqrt(progress)
