"""Train bf16 weights with a schedule, clipping, a numerics check, a checkpoint, and an export.

python examples/train_bf16.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

import fused_optim

WIDTH, STEPS = 64, 300


def main() -> None:
    """Fit a small network to running sums of its inputs, and print the loss now and then."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)]
    model = nn.Sequential(*layers).to(device, torch.bfloat16)

    # Matrices decay; biases and norms do not. 12 bytes per parameter, weights included; add
    # low_precision="stochastic" and state_dtype=torch.bfloat16 for 6.
    groups = fused_optim.param_groups_weight_decay(model, 0.1)
    optimizer = fused_optim.AdamW(groups, lr=3e-3, max_grad_norm=1.0)
    schedule = fused_optim.get_cosine_schedule_with_warmup(optimizer, STEPS // 10, STEPS)

    for step in range(STEPS):
        x = torch.randn(32, WIDTH, device=device, dtype=torch.bfloat16)
        loss = (model(x) - x.cumsum(-1) / 8).float().square().mean()
        loss.backward()
        if step == STEPS // 2:
            for (
                finding
            ) in optimizer.check_numerics():  # updates that would be lost, infinities, NaN
                print(finding)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.3f}, norm {optimizer.grad_norm:.2f}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
        torch.save({name: part.state_dict() for name, part in parts.items()}, path)
        for name, state in torch.load(path, weights_only=True).items():
            parts[name].load_state_dict(state)

    weights = optimizer.fp32_state_dict(model)  # of which the bf16 weights are the rounding
    print(f"exported {len(weights)} tensors, {weights['0.weight'].dtype}")


if __name__ == "__main__":
    main()
