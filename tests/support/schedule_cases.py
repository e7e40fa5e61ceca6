"""The optimizers that the schedule tests schedule, and the loops that read the rates."""

import math

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


def metrics(seed, count=400):
    """A noisy curve that falls and rises again, with runs of equal values and a few odd ones."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, generator=generator, dtype=torch.float64)
    curve = [math.cos(step / 25) + 0.3 * noise[step].item() for step in range(count)]
    for step in range(0, count - 12, 40):
        curve[step : step + 12] = [2.0 - step / count - 0.01 * k for k in range(12)]
    curve[-20], curve[-10] = math.nan, -math.inf
    return curve


def history(scheduler, sequence):
    """The groups' rates after each metric that a schedule is given."""
    result = []
    for metric in sequence:
        scheduler.step(metric)
        result.append([float(group["lr"]) for group in scheduler.optimizer.param_groups])
    return result
