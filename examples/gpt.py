"""A small byte-level GPT: rotary positions, pre-norm blocks, tied embeddings."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256  # every byte is a token


@dataclass(frozen=True)
class GPTConfig:
    """The shape of the model."""

    layers: int = 3
    width: int = 160
    heads: int = 4
    context: int = 64

    def __post_init__(self) -> None:
        if min(self.layers, self.width, self.heads, self.context) < 1:
            raise ValueError("layers, width, heads and context must be at least 1")
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width {self.width} must be a multiple of twice the number of heads ({self.heads})"
            )


def rotary_angles(context: int, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, each [context, size / 2]."""
    frequencies = 1000.0 ** -(torch.arange(0, size, 2) / size)
    angles = torch.outer(torch.arange(context), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the two halves of each head, x [batch, heads, time, size], by its position's angles."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Mix x [batch, time, width] over time."""
        batch, time, width = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, time, width))


class Block(nn.Module):
    """Attention, then a two-layer perceptron, both on the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        # By the "layer_norm" in these names `create_optimizer` exempts them from weight decay.
        self.attention_layer_norm = nn.LayerNorm(config.width, bias=False)
        self.attention = Attention(config)
        self.mlp_layer_norm = nn.LayerNorm(config.width, bias=False)
        self.up = nn.Linear(config.width, 4 * config.width, bias=False)
        self.down = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Add both branches to x [batch, time, width]."""
        x = x + self.attention(self.attention_layer_norm(x), cos, sin)
        return x + self.down(F.gelu(self.up(self.mlp_layer_norm(x))))


class GPT(nn.Module):
    """Bytes in, the loss of predicting each next byte out.

    The initial weights come from torch's global generator: seed it for a reproducible model.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_layer_norm = nn.LayerNorm(config.width, bias=False)
        cos, sin = rotary_angles(config.context, config.width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # The 2 * layers matrices that write to the residual stream share its variance.
                writes = name.endswith(("out.weight", "down.weight"))
                scale = config.width * (2 * config.layers if writes else 1)
                nn.init.normal_(parameter, std=scale**-0.5)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per byte; tokens and targets are [batch, time] bytes."""
        time = tokens.shape[1]
        cos, sin = self.cos[:time], self.sin[:time]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = F.linear(self.final_layer_norm(x), self.embedding.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
