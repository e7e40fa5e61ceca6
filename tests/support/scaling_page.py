"""Writes counted figures into docs/internals/scaling.md: ``python tests/support/scaling_page.py``.

Real optimizers hold the parameters of real models as DTensors without memory, on meshes of up to
4,096 processes of which this one alone exists. State is created, and the sums of a step are
exchanged, by the package's own code, in a process group that sends nothing. Nothing is timed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import bench_package  # noqa: F401
import torch
import torch.distributed as dist
import written_pages
from shards import meta_parts, world_of
from torch.distributed.tensor import Replicate, Shard
from watch import watched

import fused_optim
from bench import ROOT, pages, traffic
from bench.results import load
from bench.shapes import llama, numel
from bench.tables import figure
from fused_optim import torch_compat
from fused_optim.distributed.geometry import local_of
from fused_optim.ops import FAMILIES
from fused_optim.plan.exchange import Exchange
from fused_optim.plan.spread import spread_of

PAGE = ROOT / "docs" / "internals" / "scaling.md"
MEASURED = ROOT / "bench" / "results" / "h200" / "results.json"

MODELS = {
    "Llama 3.1 8B": llama(32),
    "Llama 3.1 70B": llama(80, width=8192, hidden=28672),
    "Llama 3.1 405B": llama(126, width=16384, hidden=53248),
}
SHARDS = (8, 64, 512, 4096)
MESHES = (*((1, shards) for shards in SHARDS), (8, 8), (512, 8), (64, 64))
"""(replicas, shards): FSDP2 where there is one replica, HSDP elsewhere."""

Make = Callable[..., torch.optim.Optimizer]
STOCHASTIC = {"low_precision": "stochastic"}
SETUPS: dict[str, Make] = {
    "AdamW": fused_optim.AdamW,
    "AdamW, 16 bits": functools.partial(
        torch_compat.AdamW, state_dtype=torch.bfloat16, **STOCHASTIC
    ),
    "Adafactor": fused_optim.Adafactor,
    "Adafactor, 16 bits": functools.partial(fused_optim.Adafactor, **STOCHASTIC),
}
"""What the tables compare; parameters and gradients are bfloat16."""

IN_NODE, NODE_RATE, NETWORK_RATE, HOP = 8, 450e9, 50e9, 5e-6
"""Assumed: GPUs of a node, bytes a second that a GPU sends within it and beyond, and seconds that a
message takes to its first byte."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one process holds, and moves in a step.

    Attributes:
        params: bytes of parameters; gradients take as many.
        state: bytes of the optimizer's state.
        memory: bytes that the update loads and stores.
        reduces: bytes of each all-reduce of a steady step.
    """

    params: int
    state: int
    memory: float
    reduces: tuple[int, ...]


def cost(make: Make, shapes: list[tuple[int, ...]], mesh: Any) -> Cost:
    """Count one optimizer's cost where every parameter is split by its first dimension."""
    parts = functools.partial(
        meta_parts,
        mesh=mesh,
        placements=(*[Replicate()] * (mesh.ndim - 1), Shard(0)),
        dtype=torch.bfloat16,
    )
    times = Counter(shapes)
    one_of_each = parts(times)
    optimizer = make(one_of_each)
    optimizer.init_state()
    kind = traffic.kind_of(optimizer, torch.bfloat16)
    params = state = memory = 0
    for count, param in zip(times.values(), one_of_each, strict=True):
        factored = FAMILIES[kind.op].elementwise or param.dim() > 1
        values = filter(torch.is_tensor, optimizer.state[param].values())
        params += count * _bytes_here(param)
        state += count * sum(map(_bytes_here, values))
        moved = traffic.moved(dataclasses.replace(kind, factored=factored))
        memory += count * local_of(param).numel() * moved
    reduces = () if FAMILIES[kind.op].elementwise else _reduced(make(parts(shapes)))
    return Cost(params, state, memory, reduces)


def _bytes_here(tensor: torch.Tensor) -> int:
    return local_of(tensor).numel() * tensor.element_size()


def _reduced(optimizer: torch.optim.Optimizer) -> tuple[int, ...]:
    """Exchange the sums of one step of Adafactor; return the bytes of its all-reduces."""
    exchange = Exchange(spread_of(optimizer), [])
    with watched() as watch:
        exchange.first([], None, statistics=True)
        exchange.second([])
    return tuple(size for _, size in watch.reduced)


@functools.cache
def costs(model: str, replicas: int, shards: int) -> dict[str, Cost]:
    """Return the costs of every setup."""
    sizes = (replicas, shards) if replicas > 1 else (shards,)
    # The first process holds the largest part of every tensor.
    with world_of(replicas * shards):
        mesh = dist.init_device_mesh("cpu", sizes)
        return {name: cost(make, MODELS[model], mesh) for name, make in SETUPS.items()}


def rate(ranks: int) -> float:
    """Return how many bytes a second a process sends to a group of so many."""
    return NODE_RATE if ranks <= IN_NODE else NETWORK_RATE


def all_reduce_seconds(ranks: int, size: float) -> float:
    """Return how long an all-reduce takes by the page's formula."""
    return 2 * math.ceil(math.log2(ranks)) * HOP + 2 * (ranks - 1) / ranks * size / rate(ranks)


def fsdp_sends(parameters: int, replicas: int, shards: int) -> tuple[float, float]:
    """Return what FSDP2 makes a process send in a step: bytes to shards, and to replicas."""
    return (
        3 * 2 * parameters * (shards - 1) / shards,
        2 * 2 * parameters / shards * (replicas - 1) / replicas,
    )


def _places(replicas: int, shards: int) -> str:
    return f"{shards:,}" if replicas == 1 else f"{replicas:,} x {shards:,}"


def memory_table() -> str:
    rows = []
    for model in MODELS:
        for shards in SHARDS:
            found = costs(model, 1, shards)
            sizes = [2 * found["AdamW"].params, *(one.state for one in found.values())]
            rows.append((model, f"{shards:,}", *(figure(size / 1e9, 3) for size in sizes)))
    return pages.markdown(("model", "shards", "parameters and gradients", *SETUPS), rows)


def communication_table() -> str:
    copy = load(MEASURED).copy.gb_per_s * 1e9
    rows = []
    for model, shapes in MODELS.items():
        for replicas, shards in MESHES:
            found = costs(model, replicas, shards)
            reduces = found["Adafactor"].reduces
            spent = sum(all_reduce_seconds(shards, size) for size in reduces)
            within, between = fsdp_sends(numel(shapes), replicas, shards)
            own = within / rate(shards) + between / rate(replicas * shards)
            times = (found["AdamW"].memory / copy, found["Adafactor"].memory / copy, spent)
            rows.append(
                (
                    *(model, _places(replicas, shards), figure((within + between) / 1e9, 3)),
                    " + ".join(figure(size / 1e6, 3) for size in reduces),
                    *(figure(1e3 * seconds, 3) for seconds in times),
                    f"{100 * spent / own:.2g} %",
                )
            )
    head = ("model", "GPUs", "FSDP2 sends, GB", "all-reduces, MB", "AdamW, ms", "Adafactor, ms")
    return pages.markdown((*head, "all-reduces, ms", "of FSDP2's time"), rows)


TABLES = {"memory": memory_table, "communication": communication_table}


def main(arguments: list[str] | None = None) -> None:
    written_pages.rewrite(PAGE, TABLES, __doc__, arguments)


if __name__ == "__main__":
    main()
