"""Train with accelerate: accumulation, clipping, a prepared schedule, saving and loading.

python examples/with_accelerate.py, or: accelerate launch examples/with_accelerate.py
"""

from __future__ import annotations

import tempfile

import torch
from accelerate import Accelerator
from torch import nn

import fused_optim

WIDTH, EPOCHS, BATCH, ACCUMULATED = 64, 6, 32, 2


def main() -> None:
    """Fit a small network to running sums of its inputs, in bf16."""
    cpu = not torch.cuda.is_available()
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATED, cpu=cpu)
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)]
    model = nn.Sequential(*layers).bfloat16()
    data = torch.randn(1024, WIDTH, dtype=torch.bfloat16)
    batches = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)

    optimizer = fused_optim.AdamW(fused_optim.param_groups_weight_decay(model, 0.1), lr=3e-3)
    processes = accelerator.num_processes
    steps = fused_optim.num_optimizer_steps(len(data), BATCH, EPOCHS, ACCUMULATED, processes)
    # A prepared schedule advances once for each process, whence the factor.
    schedule = fused_optim.get_cosine_schedule_with_warmup(
        optimizer, steps * processes // 10, steps * processes
    )
    model, optimizer, batches, schedule = accelerator.prepare(model, optimizer, batches, schedule)

    for epoch in range(EPOCHS):
        for x in batches:
            with accelerator.accumulate(model):
                loss = (model(x) - x.cumsum(-1) / 8).float().square().mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
        accelerator.load_state(folder)
    accelerator.end_training()


if __name__ == "__main__":
    main()
