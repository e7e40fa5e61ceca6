"""Named lists of parameter shapes."""

from __future__ import annotations

import math

Shapes = list[tuple[int, ...]]


def transformer(width: int, layers: int, vocabulary: int, context: int) -> Shapes:
    """Return the shapes of a GPT-2-like model: embeddings, blocks, final norm."""
    vector = (width,)
    block: Shapes = [vector, vector, (3 * width, width), (3 * width,), (width, width), vector]
    block += [vector, vector, (4 * width, width), (4 * width,), (width, 4 * width), vector]
    return [(vocabulary, width), (context, width), *block * layers, vector, vector]


def lora(width: int, layers: int, rank: int) -> Shapes:
    """Return the shapes of LoRA adapters on four square projections per layer."""
    return [(rank, width), (width, rank)] * 4 * layers


SHAPES: dict[str, Shapes] = {
    "gpt2-124M": transformer(768, 12, 50257, 1024),
    "gpt2-30M": transformer(512, 6, 20000, 1024),
    "lora-r16": lora(2048, 24, 16),
    "tiny-1000": [(1000 + 97 * (i % 1000),) for i in range(1000)],
    "one-16M": [(4096, 4096)],
}
"""The lists that benchmarks may name."""


def numel(shapes: Shapes) -> int:
    """Return the number of parameters of a list."""
    return sum(math.prod(shape) for shape in shapes)
