"""A small byte-level GPT: rotary positions, pre-norm blocks, tied embeddings."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256  # every byte is a token


@dataclass(frozen=True)
class GPTConfig:
    """The shape of the model. The width is a multiple of twice the number of heads."""

    layers: int = 3
    width: int = 160
    heads: int = 4
    context: int = 64


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the two halves of each head, x [batch, heads, time, size], by its position's angles."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class Block(nn.Module):
    """Causal self-attention, then a two-layer perceptron, both on the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        # By the "layer_norm" in these names `create_optimizer` exempts them from weight decay.
        self.attention_layer_norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_layer_norm = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Add both branches to x [batch, time, width]."""
        batch, time, width = x.shape
        qkv = self.qkv(self.attention_layer_norm(x)).view(batch, time, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(F.gelu(self.up(self.mlp_layer_norm(x))))


class GPT(nn.Module):
    """Bytes in, the loss of predicting each next byte out.

    The initial weights come from torch's global generator: seed it for a reproducible model.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_layer_norm = nn.LayerNorm(config.width, bias=False)
        size = config.width // config.heads
        frequencies = 1000.0 ** -(torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(config.context), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)  # [context, size / 2]
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # The 2 * layers matrices that write to the residual stream share its variance.
                writes = name.endswith(("out.weight", "down.weight"))
                scale = config.width * (2 * config.layers if writes else 1)
                nn.init.normal_(parameter, std=scale**-0.5)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per byte; tokens and targets are [batch, time] bytes."""
        time = tokens.shape[1]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos[:time], self.sin[:time])
        logits = F.linear(self.final_layer_norm(x), self.embedding.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
