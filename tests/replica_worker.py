"""One replica of the data-parallel test: trains, and writes its weights and state to a file."""

from __future__ import annotations

import datetime
import os
import sys

import torch
from optimizer_table import row
from torch.nn.parallel import DistributedDataParallel

STEPS = 5


def main(name: str, rank: int, world_size: int, folder: str) -> None:
    """Train on this rank's own data, with a random state that is this rank's own too."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{os.path.join(folder, 'rendezvous')}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=60),
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    model = DistributedDataParallel(model.bfloat16())
    options = {"low_precision": "stochastic", "state_dtype": torch.bfloat16}
    optimizer = row(name).build(model, **options)
    torch.manual_seed(100 + rank)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(3, 4).bfloat16()).float().square().mean().backward()
        torch.rand(rank + 1)  # the replicas' generators part company
        before = torch.get_rng_state()
        optimizer.step()
        assert torch.equal(torch.get_rng_state(), before)
    result = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(result, os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
