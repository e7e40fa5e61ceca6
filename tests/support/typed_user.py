"""A program of a user's, for a type checker: ``mypy --strict`` finds nothing in it.

It runs as well, so that what the hints promise is what the package does.
"""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import assert_type

import fused_optim
from fused_optim import torch_compat


def optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Return one of every kind, with the options that have hints of their own."""
    groups = fused_optim.param_groups_weight_decay(model, 0.1)
    scheduled, rate = fused_optim.create_optimizer(model.parameters(), 1e-3, 10, 2)
    assert_type(rate(1), float)
    return [
        fused_optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
        fused_optim.AdamW(model.parameters(), lr=1e-3, state_dtype="int8", low_precision="split"),
        fused_optim.AdamW(model.named_parameters(), state_dtype=torch.bfloat16),
        fused_optim.Adafactor(model.parameters(), lr=None, relative_step=True, warmup_init=True),
        fused_optim.Adafactor(model.parameters(), lr=1e-3, relative_step=False, beta1=0.9),
        assert_type(fused_optim.Adafactor.t5(model.parameters(), lr=1e-4), fused_optim.Adafactor),
        fused_optim.Adafactor.paper(model.parameters(), warmup_init=True),
        fused_optim.AdamWeightDecay(model.parameters(), learning_rate=1e-3),
        fused_optim.Lion(model.parameters(), lr=1e-4, max_grad_norm=1.0, backend="eager"),
        torch_compat.AdamW(model.parameters(), lr=1e-3, amsgrad=True, maximize=True),
        torch_compat.Adam(model.parameters(), lr=torch.tensor(1e-3), capturable=True),
        torch_compat.Adafactor(model.parameters(), lr=1e-2),
        scheduled,
    ]


def schedules(optimizer: torch.optim.Optimizer) -> list[torch.optim.lr_scheduler.LRScheduler]:
    """Return some schedules, by their functions and by name."""
    return [
        fused_optim.get_cosine_schedule_with_warmup(optimizer, 2, 10),
        fused_optim.get_linear_schedule_with_warmup(optimizer, 2, 10, last_epoch=-1),
        fused_optim.get_scheduler("cosine", optimizer, num_warmup_steps=2, num_training_steps=10),
    ]


def train(model: torch.nn.Module, optimizer: fused_optim.AdamW) -> float:
    """Return the last loss of a few steps."""
    for_all = torch.randn(4, 8)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(for_all).square().mean()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    for report in optimizer.check_numerics():
        print(report.kind, report)
    state = optimizer.state_dict()
    assert_type(state, dict[str, Any])
    optimizer.load_state_dict(state)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "lr": 0.1})
    optimizer.init_state()
    accumulator = fused_optim.GradientAccumulator()
    accumulator([param.grad for param in model.parameters()])
    accumulator.reset()
    return float(loss.detach())


def main() -> None:
    """Do what the functions above are for."""
    model = torch.nn.Linear(8, 8)
    for optimizer in optimizers(model):
        if isinstance(optimizer, fused_optim.Adafactor):
            assert fused_optim.AdafactorSchedule(optimizer, initial_lr=1e-3).get_last_lr()
    plain = fused_optim.AdamW(model.parameters(), lr=1e-3)
    assert schedules(plain)[:3]
    assert train(model, plain) >= 0.0
    print(fused_optim.__version__, fused_optim.info())


if __name__ == "__main__":
    main()
