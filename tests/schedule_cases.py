"""The optimizers that the schedule tests schedule, and the loop that reads the rates."""

import torch

from fused_optim import schedules


def sgd(lr=10.0, *more_lrs):
    """An optimizer whose groups have these learning rates; the first is its own `lr` argument."""
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(1 + len(more_lrs))]
    groups = [{"params": params[:1]}]
    groups += [{"params": [p], "lr": lr} for p, lr in zip(params[1:], more_lrs, strict=True)]
    return torch.optim.SGD(groups, lr=lr)


def advance(scheduler, steps):
    """Train `steps` steps; returns each step's rate, or rates where there are several groups."""
    rates = []
    for _ in range(steps):
        groups = scheduler.optimizer.param_groups
        # From the optimizer, not the scheduler: it is what training sees. float() copies a tensor.
        lrs = [float(group["lr"]) for group in groups]
        assert lrs == [float(lr) for lr in scheduler.get_last_lr()]
        rates.append(lrs[0] if len(lrs) == 1 else lrs)
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def build(name, optimizer, arguments, get_scheduler=schedules.get_scheduler):
    """The schedule of that name; "W" and "T" are its step counts, the rest its own arguments."""
    extra = {key: value for key, value in arguments.items() if key not in ("W", "T")}
    return get_scheduler(name, optimizer, arguments.get("W"), arguments.get("T"), extra or None)
