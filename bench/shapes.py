"""Named lists of parameter shapes: those of real models, extremes, and those of the sweep."""

import math
import re

Shapes = list[tuple[int, ...]]


def _pre_norm_block(width: int) -> Shapes:
    """A transformer's block with biases: norm, attention, norm, feed-forward."""
    vector = (width,)
    block: Shapes = [vector, vector, (3 * width, width), (3 * width,), (width, width), vector]
    return [*block, vector, vector, (4 * width, width), (4 * width,), (width, 4 * width), vector]


def gpt2(width: int, layers: int, vocabulary: int = 50257, context: int = 1024) -> Shapes:
    """GPT-2: embeddings, blocks, final norm. The output layer is the embedding."""
    blocks = _pre_norm_block(width) * layers
    return [(vocabulary, width), (context, width), *blocks, (width,), (width,)]


def llama(layers: int, width: int = 4096, hidden: int = 14336, vocabulary: int = 128256) -> Shapes:
    """Llama 3.1: 8 heads of 128 for keys and values, no biases, untied output layer."""
    attention: Shapes = [(width, width), (1024, width), (1024, width), (width, width)]
    block = [*attention, (hidden, width), (hidden, width), (width, hidden), (width,), (width,)]
    return [(vocabulary, width), *block * layers, (width,), (vocabulary, width)]


def t5(width: int = 768, layers: int = 12, hidden: int = 3072, vocabulary: int = 32128) -> Shapes:
    """T5: one shared embedding, no biases, relative positions in the first layers only."""
    attention: Shapes = [(width, width)] * 4 + [(width,)]
    feed_forward: Shapes = [(hidden, width), (width, hidden), (width,)]
    buckets: Shapes = [(32, width // 64)]
    encoder = [*buckets, *[*attention, *feed_forward] * layers, (width,)]
    decoder = [*buckets, *[*attention, *attention, *feed_forward] * layers, (width,)]
    return [(vocabulary, width), *encoder, *decoder]


def resnet(blocks: tuple[int, ...] = (3, 4, 23, 3)) -> Shapes:
    """ResNet of bottleneck blocks; each convolution is followed by a batch norm."""

    def conv(outputs: int, inputs: int, size: int) -> Shapes:
        return [(outputs, inputs, size, size), (outputs,), (outputs,)]

    shapes, inputs = conv(64, 3, 7), 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            shapes += conv(width, inputs, 1) + conv(width, width, 3) + conv(4 * width, width, 1)
            if block == 0:
                shapes += conv(4 * width, inputs, 1)
            inputs = 4 * width
    return [*shapes, (1000, inputs), (1000,)]


def vit(width: int = 768, layers: int = 12, patch: int = 16, image: int = 224) -> Shapes:
    """Vision transformer with one class token and learned positions."""
    vector = (width,)
    tokens = (image // patch) ** 2 + 1
    embedding: Shapes = [(1, 1, width), (1, tokens, width), (width, 3, patch, patch), vector]
    return [*embedding, *_pre_norm_block(width) * layers, vector, vector, (1000, width), (1000,)]


def lora(shapes: Shapes, rank: int) -> Shapes:
    """LoRA adapters, A and B, of every matrix of a list."""
    return [s for rows, cols in shapes for s in ((rank, cols), (rows, rank))]


def sharded(shapes: Shapes, ranks: int) -> Shapes:
    """What the first rank holds when each tensor's first dimension is split, as FSDP2 does."""
    return [(math.ceil(rows / ranks), *rest) for rows, *rest in shapes]


def numel(shapes: Shapes) -> int:
    """Return the number of parameters of a list."""
    return sum(math.prod(shape) for shape in shapes)


_LLAMA_PROJECTIONS: Shapes = [s for s in llama(32)[1:-2] if len(s) == 2]

SHAPES: dict[str, Shapes] = {
    "smoke": [(64, 96), (96,), (8, 4, 3, 3), (1,), (3, 1000)],
    "gpt2-124M": gpt2(768, 12),
    "gpt2-30M": gpt2(512, 6, vocabulary=20000),
    "llama-8b": llama(32),
    "llama-8b-4l": llama(4),
    "llama-8b-2l": llama(2),
    "llama-8b-1of8": sharded(llama(32), 8),
    "t5-base": t5(),
    "resnet-101": resnet(),
    "vit-b16": vit(),
    "lora-r16": lora(_LLAMA_PROJECTIONS, 16),
    "tiny-1000": [(1000 + 97 * i,) for i in range(1000)],
    "one-16M": [(4096, 4096)],
    "one-256M": [(16384, 16384)],
    "one-1G": [(32768, 32768)],
}
"""The lists that a benchmark may name."""

LARGE = ("llama-8b", "llama-8b-4l", "llama-8b-2l", "llama-8b-1of8")
"""Lists whose step takes as long as memory takes."""

MANY_SMALL = ("tiny-1000", "lora-r16", "resnet-101")
"""Lists whose step takes as long as its launches take."""

FIXED_SIZE, FIXED_TENSORS = "count", "size"
"""What is swept: the number of tensors of equally many parameters, or their size."""


def swept(kind: str, tensors: int, numel: int) -> str:
    """Make a list of equal tensors known and return its name; ``numel`` is of each."""
    name = f"sweep-{kind}-{tensors}x{numel}"
    SHAPES.setdefault(name, [matrix(numel)] * tensors)
    return name


MOST_SWEPT = {"cpu": 10**8, "cuda": 10**10}  # parameters of a list


def sweep_lists(device: str, quick: bool) -> list[str]:
    """Return the lists of both sweeps.

    They are 16 tensors of 10 thousand to 10 billion parameters together, as far as memory goes, and
    ten million parameters split into 1 to 10,000 tensors. Lists grow from the cheapest to the
    dearest, so that a run that is out of time has the lines' beginnings.
    """
    counts = (1, 100, 10_000) if quick else (1, 10, 100, 1000, 10_000)
    tops = [10**k for k in ((4, 6, 8, 9) if quick else range(4, 11))]
    tops += [] if quick else [3 * 10**9]
    points = [swept(FIXED_TENSORS, 16, n // 16) for n in sorted(tops) if n <= MOST_SWEPT[device]]
    return [*points, *(swept(FIXED_SIZE, n, 10**7 // n) for n in counts)]


def kind_of(name: str) -> str | None:
    """Return what a list is a point of, or None where it is none of the sweep's."""
    match = re.fullmatch(r"sweep-(count|size)-\d+x\d+", name)
    return match and match[1]


def matrix(numel: int) -> tuple[int, ...]:
    """Return the shape of a matrix of that many elements, or of a vector where it would be thin."""
    rows = next(r for r in range(math.isqrt(numel), 0, -1) if numel % r == 0)
    return (rows, numel // rows) if 16 * rows >= numel // rows else (numel,)
