"""A small model and its data, with the interface that training stacks want."""

from __future__ import annotations

import torch


class Regression(torch.nn.Module):
    """A model that returns its loss, as those of transformers do."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inner = torch.nn.Linear(4, 3)
        self.norm = torch.nn.LayerNorm(3)
        self.to(dtype)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = self.norm(self.inner(x.to(self.norm.weight.dtype))).float()
        return {"loss": (out - labels).square().mean(), "logits": out}


def examples(count: int = 16) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(4)
    return [{"x": torch.randn(4), "labels": torch.randn(3)} for _ in range(count)]


def loader(batch_size: int = 4) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(examples(), batch_size=batch_size)
