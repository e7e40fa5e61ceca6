"""Train with DistributedDataParallel: replicas that stay equal to the bit, in 6 bytes a parameter.

On CPU processes:  torchrun --nproc-per-node 2 examples/with_ddp.py
On GPUs the same command, with as many processes as there are GPUs.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fused_optim

WIDTH, STEPS, MICRO_BATCHES = 64, 60, 4


def main() -> None:
    """Fit a small network to running sums of its inputs, over micro-batches summed in float32."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu", int(os.environ["LOCAL_RANK"]) * on_gpu)
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")

    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)]
    model = DistributedDataParallel(nn.Sequential(*layers).to(device, torch.bfloat16))
    # Weights and moments are rounded stochastically, by the same bits on every replica.
    optimizer = fused_optim.torch_compat.AdamW(model.parameters(), lr=3e-3)
    schedule = fused_optim.get_linear_schedule_with_warmup(optimizer, STEPS // 10, STEPS)
    fused_optim.Float32Gradients(optimizer, average_over=model)

    torch.manual_seed(dist.get_rank() + 1)  # each process has data of its own
    for step in range(STEPS):
        with model.no_sync():  # the step averages the float32 sums over the processes, once
            for _ in range(MICRO_BATCHES):
                x = torch.randn(16, WIDTH, device=device, dtype=torch.bfloat16)
                loss = (model(x) - x.cumsum(-1) / 8).float().square().mean()
                loss.backward()
        optimizer.step()
        schedule.step()
        if dist.get_rank() == 0 and step % 20 == 19:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)

    for weight in model.parameters():
        everyones = [torch.empty_like(weight) for _ in range(dist.get_world_size())]
        dist.all_gather(everyones, weight.detach())
        assert all(torch.equal(one, weight) for one in everyones)
    dist.barrier()  # gloo may abort a process that ends before the others
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
