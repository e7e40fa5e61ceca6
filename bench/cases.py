"""What is measured: optimizers of this package and the baselines they replace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

import fused_optim
from bench.shapes import SHAPES
from fused_optim import torch_compat


def transformers_adafactor(params: list[torch.Tensor], **kwargs: Any) -> torch.optim.Optimizer:
    """Construct transformers' Adafactor, imported only where it is measured."""
    from transformers.optimization import Adafactor

    return Adafactor(params, **kwargs)


@dataclass(frozen=True)
class Setup:
    """One optimizer as a user would construct it."""

    make: Callable[..., torch.optim.Optimizer]
    kwargs: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    def optimizer(self, shapes: str) -> torch.optim.Optimizer:
        """Return the optimizer over parameters of a named list, with gradients and state."""
        generator = torch.Generator().manual_seed(0)
        params = []
        for shape in SHAPES[shapes]:
            p = torch.nn.Parameter((torch.randn(shape, generator=generator) * 0.02).to(self.dtype))
            p.grad = (torch.randn(shape, generator=generator) * 1e-3).to(self.dtype)
            params.append(p)
        optimizer = self.make(params, **self.kwargs)
        optimizer.step()
        return optimizer


_BF16 = torch.bfloat16
_T5 = {"lr": 1e-3, "relative_step": False, "scale_parameter": False}
_DECAY = {"weight_decay": 0.01}

SETUPS: dict[str, Setup] = {
    "torch AdamW fused": Setup(torch.optim.AdamW, {"fused": True}),
    "torch AdamW foreach": Setup(torch.optim.AdamW, {"foreach": True}),
    "torch AdamW foreach bf16": Setup(torch.optim.AdamW, {"foreach": True}, _BF16),
    "torch Adafactor": Setup(torch.optim.Adafactor),
    "transformers Adafactor": Setup(transformers_adafactor),
    "transformers Adafactor T5": Setup(transformers_adafactor, _T5),
    "transformers Adafactor T5 bf16": Setup(transformers_adafactor, _T5, _BF16),
    "torch_compat.AdamW": Setup(torch_compat.AdamW),
    "torch_compat.AdamW bf16": Setup(torch_compat.AdamW, {}, _BF16),
    "torch_compat.Adafactor": Setup(torch_compat.Adafactor),
    "AdamW": Setup(fused_optim.AdamW, _DECAY),
    "AdamW clipped": Setup(fused_optim.AdamW, {**_DECAY, "max_grad_norm": 1.0}),
    "AdamW bf16": Setup(fused_optim.AdamW, _DECAY, _BF16),
    "Adafactor": Setup(fused_optim.Adafactor),
    "Adafactor T5": Setup(fused_optim.Adafactor, _T5),
    "Adafactor T5 bf16": Setup(fused_optim.Adafactor, _T5, _BF16),
}
"""Optimizers by the name that results carry."""


@dataclass(frozen=True)
class Goal:
    """A speed that one optimizer must reach: at least ``ratio`` times the baseline's."""

    ours: str
    baseline: str
    shapes: str
    ratio: float


CPU_GOALS = [
    Goal("torch_compat.AdamW", "torch AdamW fused", "gpt2-30M", 1.0),
    Goal("AdamW", "torch AdamW foreach", "gpt2-30M", 1.0),
    Goal("Adafactor T5", "transformers Adafactor T5", "gpt2-30M", 1.5),
    Goal("Adafactor", "transformers Adafactor", "gpt2-124M", 1.5),
    Goal("Adafactor T5", "transformers Adafactor T5", "gpt2-124M", 1.5),
]
"""What the eager backend must reach on a CPU."""

CPU_OBSERVED = [
    Goal("Adafactor", "transformers Adafactor", "gpt2-30M", 0.0),
    Goal("torch_compat.AdamW", "torch AdamW fused", "tiny-1000", 0.0),
    Goal("torch_compat.Adafactor", "torch Adafactor", "gpt2-30M", 0.0),
    Goal("Adafactor T5 bf16", "transformers Adafactor T5 bf16", "gpt2-30M", 0.0),
    Goal("AdamW bf16", "torch AdamW foreach bf16", "gpt2-30M", 0.0),
    Goal("torch_compat.AdamW bf16", "torch AdamW foreach bf16", "gpt2-30M", 0.0),
    Goal("AdamW clipped", "torch AdamW foreach", "gpt2-30M", 0.0),
]
"""What is measured beside the goals. 16-bit rows do more than their baseline, which stalls."""
