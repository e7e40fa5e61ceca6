"""A training loop of the shape of torchtitan's: what its containers ask of an optimizer.

Its parts are Stateful objects, which torch.distributed.checkpoint saves and loads by itself: a
container of one optimizer for each model part, which flattens and merges their state dicts, and a
container of their schedules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful
from torch.optim.lr_scheduler import LambdaLR

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class Model(Stateful):
    """The parameters of all model parts, in one dict."""

    def __init__(self, parts: list[nn.Module]) -> None:
        self.parts = parts

    def state_dict(self) -> dict[str, Any]:
        return {k: v for part in self.parts for k, v in get_model_state_dict(part).items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part in self.parts:
            names = get_model_state_dict(part)
            set_model_state_dict(part, {name: state_dict[name] for name in names})


class Optimizers(torch.optim.Optimizer, Stateful):
    """An optimizer to schedules and hooks, and one optimizer for each model part within."""

    def __init__(self, parts: list[nn.Module], make: Callable) -> None:
        self.parts = parts
        self.optimizers = [make([*part.parameters()]) for part in parts]
        params = [param for part in parts for param in part.parameters()]
        super().__init__(params, self.optimizers[0].defaults)

    def step(self, closure: Any = None) -> None:
        for optimizer in self.optimizers:
            optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part, optimizer in zip(self.parts, self.optimizers, strict=True):
            found.update(get_optimizer_state_dict(part, optimizer, options=FLAT))
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, optimizer in zip(self.parts, self.optimizers, strict=True):
            set_optimizer_state_dict(part, optimizer, state_dict, options=FLAT)


class Schedules(Stateful):
    """One schedule for each optimizer; all are at the same step, so one is saved."""

    def __init__(self, optimizers: Optimizers) -> None:
        self.schedules = [
            LambdaLR(one, lambda step: 1 / (1 + step)) for one in optimizers.optimizers
        ]

    def step(self) -> None:
        for schedule in self.schedules:
            schedule.step()

    def state_dict(self) -> dict[str, Any]:
        return self.schedules[0].state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for schedule in self.schedules:
            schedule.load_state_dict(dict(state_dict))


class Trainer(Stateful):
    """The loop: accumulate, clip by the norm of all parts, step, go on in the schedule."""

    def __init__(self, model: nn.Sequential, make: Callable, loss_of: Callable) -> None:
        self.model, self.loss_of, self.step = model, loss_of, 0
        self.parts = [nn.Sequential(model[0], model[1]), nn.Sequential(model[2], model[3])]
        for part, names in zip(self.parts, (("0", "1"), ("2", "3")), strict=True):
            part._modules = {name: model._modules[name] for name in names}
        self.optimizers = Optimizers(self.parts, make)
        self.schedules = Schedules(self.optimizers)

    def train(self, steps: int, before_step: Callable[[], Any] | None = None) -> None:
        for _ in range(steps):
            self.step += 1
            self.optimizers.zero_grad()
            for micro in range(2):
                (self.loss_of(self.model, 10 * self.step + micro) / 2).backward()
            params = [param for part in self.parts for param in part.parameters()]
            grads = [param.grad for param in params if param.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads).full_tensor()
            torch.nn.utils.clip_grads_with_norm_(params, 0.5, norm)
            if before_step is not None:
                before_step()
            self.optimizers.step()
            self.schedules.step()

    def rates(self) -> list[float]:
        return [group["lr"] for one in self.optimizers.optimizers for group in one.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"step": torch.tensor(self.step)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step = int(state_dict["step"])

    def states(self) -> dict[str, Stateful]:
        """Return what a checkpoint holds."""
        names = ("model", "optimizer", "lr_scheduler", "train_state")
        parts = (Model(self.parts), self.optimizers, self.schedules, self)
        return dict(zip(names, parts, strict=True))
