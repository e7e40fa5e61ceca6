"""The four optimizers of the comparison, each with its schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import fused_optim

if TYPE_CHECKING:
    from settings import Settings

# What each builder returns. A scheduler of None: the learning rate lives on the optimizer.
Built = tuple[Optimizer, LRScheduler | None]
BETAS = (0.9, 0.99)
EPS = 1e-8
ADAM_LR = 2e-3


@dataclass(frozen=True)
class Recipe:
    """An optimizer as this demo uses it."""

    label: str
    lr: float  # at the peak of the schedule
    build: Callable[[nn.Module, Recipe, Settings], Built]

    @property
    def hyperparameters(self) -> list[Any]:
        """What this file adds to the settings of a run."""
        return [self.label, self.lr, BETAS, EPS]

    def decay(self, settings: Settings) -> float:
        """The weight decay at which lr * decay, what a step takes off, is equal for all four."""
        return settings.weight_decay * ADAM_LR / self.lr


def cosine(optimizer: Optimizer, settings: Settings) -> LRScheduler:
    """Linear warm-up, then half a cosine down to zero."""
    return fused_optim.get_cosine_schedule_with_warmup(
        optimizer, settings.warmup_steps, settings.steps
    )


def torch_adamw(model: nn.Module, recipe: Recipe, settings: Settings) -> Built:
    """The baseline."""
    groups = fused_optim.param_groups_weight_decay(model, recipe.decay(settings))
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr * settings.lr_scale, betas=BETAS, eps=EPS)
    return optimizer, cosine(optimizer, settings)


def adamw(model: nn.Module, recipe: Recipe, settings: Settings) -> Built:
    """The same hyperparameters, so its curve should lie on the baseline's."""
    groups = fused_optim.param_groups_weight_decay(model, recipe.decay(settings))
    optimizer = fused_optim.AdamW(
        groups, lr=recipe.lr * settings.lr_scale, betas=BETAS, eps=EPS, **settings.fused_options
    )
    return optimizer, cosine(optimizer, settings)


def adafactor(model: nn.Module, recipe: Recipe, settings: Settings) -> Built:
    """Steps relative to each tensor's own size (`scale_parameter`), on an external schedule."""
    groups = fused_optim.param_groups_weight_decay(model, recipe.decay(settings))
    optimizer = fused_optim.Adafactor(
        groups,
        lr=recipe.lr * settings.lr_scale,
        relative_step=False,
        scale_parameter=True,
        **settings.fused_options,
    )
    return optimizer, cosine(optimizer, settings)


def adam_weight_decay(model: nn.Module, recipe: Recipe, settings: Settings) -> Built:
    """TensorFlow's: warm-up and linear decay on the optimizer itself, weight decay by name."""
    optimizer, _ = fused_optim.create_optimizer(
        model.named_parameters(),
        init_lr=recipe.lr * settings.lr_scale,
        num_train_steps=settings.steps,
        num_warmup_steps=settings.warmup_steps,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        weight_decay_rate=recipe.decay(settings),
        **settings.fused_options,
    )
    return optimizer, None


RECIPES = {
    "torch-adamw": Recipe("torch.optim.AdamW", ADAM_LR, torch_adamw),
    "adamw": Recipe("fused_optim.AdamW", ADAM_LR, adamw),
    "adafactor": Recipe("fused_optim.Adafactor", 2e-2, adafactor),
    "adam-weight-decay": Recipe("fused_optim.AdamWeightDecay", ADAM_LR, adam_weight_decay),
}
