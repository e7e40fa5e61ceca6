"""Counting the steps that a schedule is measured in."""

import math


def num_optimizer_steps(
    num_examples: int,
    batch_size: int,
    num_epochs: float = 1,
    gradient_accumulation_steps: int = 1,
    num_processes: int = 1,
    drop_last: bool = False,
) -> int:
    """Return how often `optimizer.step()` runs: the `num_training_steps` of every schedule.

    A schedule counts optimizer steps, not micro-batches, and not per process:

        micro_batches = ceil(num_examples / (batch_size * num_processes))   # floor with drop_last
        steps         = ceil(num_epochs * ceil(micro_batches / gradient_accumulation_steps))

    The last, incomplete accumulation window of an epoch counts as a step, as the transformers
    Trainer and accelerate run it. Call `scheduler.step()` once per optimizer step:

    | loop | `num_training_steps` |
    | --- | --- |
    | your own, Lightning (interval "step"), the transformers Trainer | `steps` |
    | a scheduler that went through `accelerator.prepare` | `steps * num_processes` |
    | the same, with `split_batches=True` | `steps` |

    A prepared scheduler advances `num_processes` steps for each optimizer step, whence the factor;
    `num_warmup_steps` takes it too.

    Args:
        num_examples: size of the whole data set, over all processes.
        batch_size: examples in one micro-batch of one process.
        num_epochs: passes over the data; a fraction is rounded up to a whole step.
        gradient_accumulation_steps: micro-batches per optimizer step.
        num_processes: data-parallel processes that share each epoch.
        drop_last: whether an incomplete last batch (over all processes) is dropped.

    Returns:
        The number of optimizer steps; 0 if there is no complete batch.

    Raises:
        ValueError: if a count is not positive (`num_examples` and `num_epochs` may be 0).

    Example:
        >>> from fused_optim.schedules import num_optimizer_steps
        >>> num_optimizer_steps(1000, batch_size=8, num_epochs=3, gradient_accumulation_steps=4)
        96
    """
    for name, value, least in (
        ("num_examples", num_examples, 0),
        ("batch_size", batch_size, 1),
        ("num_epochs", num_epochs, 0),
        ("gradient_accumulation_steps", gradient_accumulation_steps, 1),
        ("num_processes", num_processes, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}.")
    global_batch = batch_size * num_processes
    # -(-a // b) is ceil(a / b) in integers: a float quotient is off for huge data sets.
    if drop_last:
        micro_batches = num_examples // global_batch
    else:
        micro_batches = -(-num_examples // global_batch)
    return math.ceil(num_epochs * -(-micro_batches // gradient_accumulation_steps))
