"""Elementwise optimizers over shards, case after case: bit for bit what they do with the whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from optimizer_table import MODES
from shards import Twins, in_turns, placings

import fused_optim
from fused_optim import torch_compat

SHAPES = ((37, 5), (3,), (130,), (8, 3, 4), (2, 2), (5, 0), (1, 70), ())
UPDATES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": functools.partial(fused_optim.AdamW, lr=1e-2, weight_decay=0.1),
    "AdamWeightDecay": functools.partial(
        lambda params, **options: fused_optim.AdamWeightDecay(
            list(params), 1e-2, amsgrad=True, weight_decay_rate=0.1, clipvalue=0.5, **options
        )
    ),
    "Lion": functools.partial(fused_optim.Lion, lr=1e-2, weight_decay=0.1),
    "torch_compat.AdamW": functools.partial(torch_compat.AdamW, lr=1e-2, amsgrad=True),
    "torch_compat.Adam": functools.partial(torch_compat.Adam, lr=1e-2, weight_decay=0.1),
}


def tensors(dtype: torch.dtype) -> list[Any]:
    return [(shape, dtype, place) for shape in SHAPES for place in placings(len(shape))]


def in_blocks(dtype: torch.dtype) -> list[Any]:
    """Return tensors whose parts consist of whole blocks of 256 elements, wherever they lie."""
    shapes = ((37, 256), (16, 1024), (10, 2, 256), (2, 4096))
    count = torch.distributed.get_world_size()
    return [
        (shape, dtype, place)
        for shape in shapes
        for place in placings(len(shape))
        if not any(one.is_shard() and one.dim > 0 for one in place[1])
        or (len(shape) == 2 and shape[1] % (256 * count) == 0)
    ]


def cases() -> Iterator[tuple[str, Any, list[Any]]]:
    """Yield (name, what makes an optimizer, its parameters)."""
    for number, (name, make) in enumerate(UPDATES.items()):
        for dtype, modes in MODES.items():
            for turn, mode in enumerate(modes):
                moments = (torch.float32, torch.bfloat16)[(number + turn) % 2]
                options = {"low_precision": mode, "state_dtype": moments, "seed": 3 + number}
                options["backend"] = ("eager", "auto")[turn % 2]
                mine = tensors(dtype)[turn % 2 :: 2] if turn else tensors(dtype)
                yield f"{name} {dtype} {mode}", functools.partial(make, **options), mine
    every = [one for dtype in MODES for one in tensors(dtype)[:: len(MODES)]]
    yield "all dtypes in one", UPDATES["AdamW"], every
    for name, mode in (("AdamW", "split"), ("torch_compat.AdamW", "stochastic")):
        options = {"low_precision": mode, "state_dtype": "int8", "seed": 9}
        make = functools.partial(UPDATES[name], **options)
        yield f"{name} 8 bits", make, in_blocks(torch.bfloat16)


def differences(known: dict[str, Any], every: bool) -> dict[str, list[str]]:
    """Return each case's differences; the world sizes take turns unless ``every`` case is due."""
    found = {}
    for number, (name, make, mine) in enumerate(cases()):
        packed = name.endswith("8 bits")
        if not (every or packed or number % 7 == 2 * torch.distributed.get_world_size() % 7):
            continue
        mine = in_turns(mine, number, every)
        twins = Twins(make, mine, known)
        twins.step(3)
        found[name] = twins.differences()
        if packed and any(
            s["exp_avg"].dtype is not torch.uint8 for s in twins.parts.state.values()
        ):
            found[name].append("moments are not in 8 bits")
    return found
