"""Which elements torch's fused CPU operators do in vector registers, and the same for a shard.

note: [lanes] The operators take the last few elements of a tensor singly, by instructions that
round otherwise than the vector ones. Which elements those are goes by where the tensor ends. So
that a shard gets the bits that its elements have in the whole, it is handed to the operator in
pieces: what the whole's vectors cover in lengths that vectors cover, the last ones padded, and what
the whole's end leaves over by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

_LONGEST = 64


def pieces(
    registers: Sequence[torch.Tensor], singly: int, width: int
) -> tuple[list[list[torch.Tensor]], list[torch.Tensor]]:
    """Return a shard's tensors in pieces, and the last of its vectors where that is a padded copy.

    Args:
        registers: contiguous tensors of one shard, of equal shapes.
        singly: how many of the last elements the operator does one by one in the whole.
        width: of a vector register.

    Returns:
        The pieces, each the list of all tensors' there; and the padded copies, none or one for each
        tensor, to be handed to `take_back_`.
    """
    flat = [tensor.view(-1) for tensor in registers]
    end = flat[0].numel() - singly
    whole = end - end % width
    found = [[tensor[:whole] for tensor in flat]] if whole else []
    padded = []
    if end > whole:
        padded = [tensor.new_ones(width) for tensor in flat]
        for copy, tensor in zip(padded, flat, strict=True):
            copy[: end - whole].copy_(tensor[whole:end])
        found.append(padded)
    if singly:
        found.append([tensor[end:] for tensor in flat])
    return found, padded


def take_back_(
    registers: Sequence[torch.Tensor], padded: Sequence[torch.Tensor], singly: int
) -> None:
    """Write what an operator made of padded copies to the tensors of a shard."""
    for tensor, copy in zip(registers, padded, strict=True):
        flat = tensor.view(-1)
        end = flat.numel() - singly
        begin = end - end % len(copy)
        flat[begin:end].copy_(copy[: end - begin])


def singly(shard, first: int, count: int, width: int) -> int:
    """Return how many of the last of a shard's elements the operator does singly in the whole.

    Args:
        shard: where the shard lies in the whole.
        first: of the elements that are asked about, by its logical index in the shard.
        count: how many they are.
        width: of a vector register.
    """
    some = min(count, width)
    last = shard.elements(first + count - some, some, torch.device("cpu"))
    return int((last >= shard.numel - shard.numel % width).sum())


def width_of(step: Callable[[list[torch.Tensor]], None]) -> int:
    """Return how many elements a vector register of an operator has: 1 if that makes no difference.

    It is found out by what `step` makes of the same numbers with one more behind them and without.
    """
    source = torch.Generator().manual_seed(0)
    numbers = [torch.rand(256, _LONGEST, generator=source) + 0.1 for _ in range(4)]
    found = []
    for length in (_LONGEST, _LONGEST - 1):
        tensors = [[row[:length].clone() for row in number] for number in numbers]
        for registers in zip(*tensors, strict=True):
            step(list(registers))
        found.append(torch.stack(tensors[0])[:, : _LONGEST - 1])
    differs = (found[0] != found[1]).any(0).nonzero()
    alone = 0 if not len(differs) else _LONGEST - int(differs[0])
    return 1 << (alone - 1).bit_length() if alone else 1


@functools.cache
def cached_width(step: Callable[[list[torch.Tensor]], None]) -> int:
    """Return `width_of` an operator, found out once."""
    return width_of(step)
