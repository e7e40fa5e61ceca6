"""Train sharded parameters with FSDP2; save, and resume to the bit on any number of processes.

torchrun --nproc-per-node 2 examples/with_fsdp2.py FOLDER [LAST_STEP]
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import fused_optim

STEPS, EVERY = 60, 20


def main(folder: Path, last: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    mesh = dist.init_device_mesh(device, (dist.get_world_size(),))  # sets this process's GPU, too
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).bfloat16().to(device)
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    optimizer = fused_optim.AdamW(model.parameters(), lr=3e-3, max_grad_norm=1.0)
    schedule = fused_optim.get_cosine_schedule_with_warmup(optimizer, STEPS // 10, STEPS)

    def state() -> dict:
        weights, moments = get_state_dict(model, optimizer)
        both = {"model_state_dict": weights, "optim_state_dict": moments}
        return both | {"schedule": schedule.state_dict()}

    # A checkpoint is whole once it has its metadata, which is written last.
    done = max((int(path.parent.name) for path in folder.glob("*/.metadata")), default=0)
    if done:
        dcp.load(saved := state(), checkpoint_id=folder / str(done))
        schedule.load_state_dict(saved.pop("schedule"))
        set_state_dict(model, optimizer, **saved)
    for step in range(done, last):
        torch.manual_seed(1000 * dist.get_rank() + step)  # the data, of this process and step
        x = torch.randn(32, 64, device=device, dtype=torch.bfloat16)
        loss = (model(x) - x.cumsum(-1) / 8).float().square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % EVERY == 0:
            dcp.save(state(), checkpoint_id=folder / str(step + 1))
            if dist.get_rank() == 0:
                print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    dist.barrier()  # gloo may abort a process that ends before the others
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else STEPS)
