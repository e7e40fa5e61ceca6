"""Train with Lightning: the optimizer and its schedule from `configure_optimizers`.

python examples/with_lightning.py
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as lightning
import torch
from torch import nn

import fused_optim

WIDTH, STEPS = 64, 120


class Module(lightning.LightningModule):
    """A small network in bf16 that learns running sums of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)]
        self.model = nn.Sequential(*layers).bfloat16()

    def training_step(self, x: torch.Tensor, number: int) -> torch.Tensor:
        loss = (self.model(x) - x.cumsum(-1) / 8).float().square().mean()
        if self.global_step % 40 == 39:
            print(f"step {self.global_step + 1}: loss {loss.item():.3f}")
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        groups = fused_optim.param_groups_weight_decay(self.model, 0.1)
        # It clips within the step; Trainer(gradient_clip_val=1.0) does so in passes of its own.
        optimizer = fused_optim.AdamW(groups, lr=3e-3, max_grad_norm=1.0)
        schedule = fused_optim.get_cosine_schedule_with_warmup(optimizer, STEPS // 10, STEPS)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def main() -> None:
    """Train for `STEPS` steps."""
    lightning.seed_everything(0, verbose=False)
    data = torch.randn(1024, WIDTH, dtype=torch.bfloat16)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_steps=STEPS, devices=1, enable_checkpointing=False, log_every_n_steps=0, **quiet
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(data, batch_size=32))


if __name__ == "__main__":
    main()
