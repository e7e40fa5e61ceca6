"""The four optimizers of the comparison, each with its schedule."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import fused_optim

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ADAM_LR, BETAS, EPS = 2e-3, (0.9, 0.99), 1e-8
ADAM = {"betas": BETAS, "eps": EPS}
TENSORFLOWS = {"adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "adam_epsilon": EPS}


@dataclass(frozen=True)
class Recipe:
    """An optimizer as this demo uses it."""

    label: str
    lr: float  # at the peak of the schedule
    make: Callable[..., Any]
    options: dict[str, Any]

    def build(self, model: nn.Module, settings: Any) -> tuple[Optimizer, Any]:
        """Return the optimizer and its schedule: None where the optimizer has its own."""
        lr, options = self.lr * settings.lr_scale, dict(self.options)
        # At this decay lr * decay, what a step takes off, is equal for all four.
        decay = settings.weight_decay * ADAM_LR / self.lr
        if self.make is not torch.optim.AdamW:  # how fused_optim's keep parameters and state
            options["low_precision"] = settings.low_precision
            if settings.state_dtype:
                options["state_dtype"] = DTYPES[settings.state_dtype]
        counts = {"num_train_steps": settings.steps, "num_warmup_steps": settings.warmup_steps}
        if self.make is fused_optim.create_optimizer:  # TensorFlow's: its schedule is within
            options |= {"init_lr": lr, "weight_decay_rate": decay, **counts}
            return self.make(model.named_parameters(), **options)[0], None
        groups = fused_optim.param_groups_weight_decay(model, decay)
        optimizer = self.make(groups, lr=lr, **options)
        schedule = fused_optim.get_cosine_schedule_with_warmup
        return optimizer, schedule(optimizer, settings.warmup_steps, settings.steps)


RELATIVE = {"relative_step": False, "scale_parameter": True}  # to each tensor's own size
RECIPES = {
    "torch-adamw": Recipe("torch.optim.AdamW", ADAM_LR, torch.optim.AdamW, ADAM),
    # The same hyperparameters, so its curve should lie on the baseline's.
    "adamw": Recipe("fused_optim.AdamW", ADAM_LR, fused_optim.AdamW, ADAM),
    "adafactor": Recipe("fused_optim.Adafactor", 2e-2, fused_optim.Adafactor, RELATIVE),
    "adam-weight-decay": Recipe(
        "fused_optim.AdamWeightDecay", ADAM_LR, fused_optim.create_optimizer, TENSORFLOWS
    ),
}
