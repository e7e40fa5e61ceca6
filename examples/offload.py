"""Train with FSDP2 whose parameters, gradients and optimizer state live in host memory.

On CPU processes:  torchrun --nproc-per-node 2 examples/offload.py
On GPUs the same command, with as many processes as there are GPUs.
"""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

import fused_optim

WIDTH, STEPS = 64, 30


def main() -> None:
    """Fit a small network to sums of its inputs, and print the loss now and then."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu", int(os.environ["LOCAL_RANK"]) * on_gpu)
    if on_gpu:
        torch.cuda.set_device(device)
    # Gradients are clipped on the CPU, where they are, so norms are added up by gloo.
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mesh = torch.distributed.init_device_mesh(device.type, (size,))

    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)]
    model = nn.Sequential(*layers).bfloat16()
    offload = CPUOffloadPolicy(pin_memory=on_gpu)
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh, offload_policy=offload)
    fully_shard(model, mesh=mesh, offload_policy=offload)

    # Parameters are DTensors on the CPU, so steps run on the `cpu` backend, on each rank's shards.
    optimizer = fused_optim.AdamW(model.parameters(), lr=3e-3, max_grad_norm=1.0)
    torch.manual_seed(rank + 1)  # each process has data of its own
    for step in range(STEPS):
        x = torch.randn(32, WIDTH, device=device, dtype=torch.bfloat16)
        loss = (model(x) - x.cumsum(-1) / 8).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0 and step % 10 == 9:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    torch.distributed.barrier()  # gloo may abort a process that ends before the others
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
