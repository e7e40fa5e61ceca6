"""One replica of the data-parallel test: trains, and hands in its weights and state."""

from __future__ import annotations

import torch
from optimizer_table import row
from processes import finish, join
from torch.nn.parallel import DistributedDataParallel

STEPS = 5


def main() -> None:
    """Train on this rank's own data, with a random state that is this rank's own too."""
    rank, (name,) = join()
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
    finish({"model": model.module.state_dict(), "optimizer": optimizer.state_dict()})


if __name__ == "__main__":
    main()
