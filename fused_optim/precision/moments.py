"""Moments as a step reads and writes them, whatever they are stored in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from fused_optim.precision import eight_bit
from fused_optim.precision.encoding import Draw, blocks, store_moment_
from fused_optim.precision.modes import is_packed
from fused_optim.precision.rounding import MOMENT_STREAMS

Tensors = Sequence["torch.Tensor | None"]


def blocks_of(
    param: torch.Tensor, grad: torch.Tensor, extra: torch.Tensor | None, moments: Tensors
) -> Iterator[tuple[int, list[torch.Tensor | None]]]:
    """Yield `encoding.blocks` of a parameter and what belongs to it, None in the place of records.

    Where there are records, blocks begin where one of these does.
    """
    beside = [None if moment is None or is_packed(moment) else moment for moment in moments]
    if any(map(is_packed, moments)):
        grad = grad.contiguous()  # as the parameter is
    yield from blocks([param, grad, extra, *beside])


def load(moments: Tensors, beside: Tensors, first: int, like: torch.Tensor) -> list:
    """Return the registers of a block of elements, one for each moment that there is.

    Args:
        moments: first, second and highest second moment of a whole tensor.
        beside: the block of each that `blocks_of` yielded.
        first: logical index of the block's first element.
        like: a block of the parameter; registers have its shape, and the dtype of its math unless
            they are a float32 moment itself.
    """
    dtype = torch.float64 if like.dtype is torch.float64 else torch.float32
    found = [None if block is None else block.to(dtype) for block in beside]
    for place in (1, 2, 0):  # a first moment's unit is that of the second
        if moments[place] is not None and is_packed(moments[place]):
            records = _records(moments[place], first, like.numel())
            if place:
                values = eight_bit.decode_second(records)
            else:
                second = None if found[1] is None else eight_bit.in_blocks(found[1])
                values = eight_bit.decode_first(records, second)
            found[place] = values.view(-1)[: like.numel()].view(like.shape)
    return found


def store(moments: Tensors, beside: Tensors, values: Tensors, first: int, draw: Draw) -> None:
    """Store the registers that an update left; the inverse of `load`."""
    second = None
    for place in (1, 2, 0):
        moment, value = moments[place], values[place]
        if moment is None:
            continue
        stream = MOMENT_STREAMS[place]
        if not is_packed(moment):
            store_moment_(beside[place], value, stream, draw, first)
            continue
        random = eight_bit.in_blocks(draw.halves(stream, first, value))
        value, records = eight_bit.in_blocks(value), _records(moment, first, value.numel())
        if place == 0:
            records.copy_(eight_bit.encode_first(value, second, random))
            continue
        records.copy_(eight_bit.encode_second(value, random))
        if place == 1:
            second = eight_bit.decode_second(records)


def _records(moment: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """Return the records of some elements: a view ``[blocks, 260]``."""
    start, end = first // eight_bit.BLOCK, -(-(first + count) // eight_bit.BLOCK)
    return moment.view(-1, eight_bit.RECORD)[start:end]
