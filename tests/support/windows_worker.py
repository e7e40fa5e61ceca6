"""One replica that sums its micro-batches in float32; and the whole window of both, by itself."""

from __future__ import annotations

import copy
import warnings

import torch
from processes import finish, join
from torch.nn.parallel import DistributedDataParallel

from fused_optim import AdamW, Float32Gradients

WINDOWS, MICRO_BATCHES, WORLD = 2, 3, 2


def batch(rank: int, number: int) -> torch.Tensor:
    """Return a micro-batch of a rank's data."""
    source = torch.Generator().manual_seed(100 * rank + number)
    return torch.randn(4, 6, generator=source).bfloat16()


def loss(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).float().square().mean()


def alone(model: torch.nn.Module) -> list[torch.Tensor]:
    """Train on both ranks' micro-batches in one process; the last norm comes first."""
    optimizer = AdamW(model.parameters(), lr=1e-2, max_grad_norm=1.0)
    gradients = Float32Gradients(optimizer)
    for window in range(WINDOWS):
        for number in range(MICRO_BATCHES):
            for rank in range(WORLD):
                loss(model, batch(rank, window * MICRO_BATCHES + number)).backward()
        assert gradients.micro_batches == MICRO_BATCHES * WORLD
        optimizer.step()
    return [optimizer.grad_norm, *(p.detach() for p in model.parameters())]


def main() -> None:
    """Train a replica, and refuse a backward pass that would average by itself."""
    rank, _ = join()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 2)).bfloat16()
    expected = alone(copy.deepcopy(model))
    replica = DistributedDataParallel(model)
    optimizer = AdamW(model.parameters(), lr=1e-2, max_grad_norm=1.0)
    gradients = Float32Gradients(optimizer, average_over=replica)
    try:
        loss(replica, batch(rank, 0)).backward()
        refused = ""
    except RuntimeError as error:
        refused = str(error)
    warnings.simplefilter("ignore")  # of the pass that was broken off
    gradients.reset()
    optimizer.zero_grad()
    replica = None
    model = DistributedDataParallel(model)
    gradients.remove()
    gradients = Float32Gradients(optimizer, average_over=model)
    for window in range(WINDOWS):
        for number in range(MICRO_BATCHES):
            with model.no_sync():
                loss(model, batch(rank, window * MICRO_BATCHES + number)).backward()
        optimizer.step()
    trained = [optimizer.grad_norm, *(p.detach() for p in model.parameters())]
    finish({"trained": trained, "expected": expected, "refused": refused})


if __name__ == "__main__":
    main()
