"""FSDP2 and tensor parallelism as people set them up, beside the same parameters whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from shards import bits, here, whole_of
from statistics_shards import problem_of
from tolerances import assert_step_close
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import fused_optim
from fused_optim import torch_compat

WIDTH = 8

Make = Callable[..., torch.optim.Optimizer]
MAKES: dict[str, Make] = {
    "AdamW": functools.partial(fused_optim.AdamW, lr=1e-2, weight_decay=0.1),
    "stochastic": functools.partial(
        torch_compat.AdamW, lr=1e-2, low_precision="stochastic", state_dtype=torch.bfloat16
    ),
    "Adafactor": functools.partial(fused_optim.Adafactor, max_grad_norm=1.0),
}


def network(dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Sequential:
    torch.manual_seed(0)
    with torch.device(device):
        layers = [nn.Linear(WIDTH, 3 * WIDTH), nn.Tanh(), nn.Linear(3 * WIDTH, WIDTH)]
        model = nn.Sequential(*layers, nn.LayerNorm(WIDTH)).to(dtype)
    model[3].bias.requires_grad_(False)
    return model


def shard(model: nn.Module, **options: Any) -> nn.Module:
    for layer in (model[0], model[2]):
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def before(make: Make, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = shard(network(options.pop("dtype", torch.float32)), **options)
    return model, make(model.parameters())


def after(make: Make, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The optimizer comes first, and its parameters are replaced, as accelerate does it."""
    model = network(options.pop("dtype", torch.float32))
    optimizer = make(model.parameters())
    shard(model, **options)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    return model, optimizer


def from_meta(make: Make, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = shard(network(device="meta"), **options)
    optimizer = make(model.parameters())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for i, param in enumerate(model.parameters()):
            param.normal_(generator=torch.Generator().manual_seed(i))
    return model, optimizer


def tensor_parallel(make: Make, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network(options.pop("dtype", torch.float32))
    mesh = options.pop("mesh")
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(model, mesh["tp"], plan)
    if mesh.ndim > 1:
        shard(model, mesh=mesh["dp"], **options)
    return model, make(model.parameters())


def setups(known: dict[str, Any]) -> dict[str, Callable[[Make], tuple]]:
    """Return what makes a model of shards and its optimizer."""
    bf16 = {"dtype": torch.bfloat16}
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    line = known["line"]
    found = {
        "before": functools.partial(before, mesh=line, **bf16),
        "after": functools.partial(after, mesh=line, **bf16),
        "offload": functools.partial(
            before, mesh=line, offload_policy=CPUOffloadPolicy(pin_memory=False)
        ),
        "mixed": functools.partial(before, mesh=line, mp_policy=mixed),
        "meta": functools.partial(from_meta, mesh=line),
        "tensor parallel": functools.partial(
            tensor_parallel,
            mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",)),
            **bf16,
        ),
    }
    if "square" in known:
        found["FSDP and tensor parallel"] = functools.partial(
            tensor_parallel, mesh=known["square"], **bf16
        )
        found["HSDP"] = functools.partial(before, mesh=known["square"], **bf16)
    return found


def train(model: nn.Module, seed: int) -> None:
    """Make gradients, of other data on other ranks of the data-parallel groups."""
    model.zero_grad()
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(seed))
    dtype = next(p.dtype for p in model.parameters())
    (model(x.to(dtype)).float() - 1.0).square().mean().backward()


def fsdp(known: dict[str, Any]) -> dict[str, list[str]]:
    """Train shards, and the same parameters whole with the same gradients; return differences."""
    found: dict[str, list[str]] = {}
    for name, setup in setups(known).items():
        for kind, make in MAKES.items():
            model, optimizer = setup(make)
            params = [p for p in model.parameters() if p.requires_grad]
            wholes = [nn.Parameter(whole_of(p.detach()).clone()) for p in params]
            reference = make(wholes)
            differences = []
            for step in range(3):
                train(model, step)
                for one, param in zip(wholes, params, strict=True):
                    one.grad = whole_of(param.grad).clone()
                optimizer.step()
                reference.step()
            for i, (whole, param) in enumerate(zip(wholes, params, strict=True)):
                mine, same = here(param.detach(), whole.detach())
                if kind == "Adafactor":
                    close = functools.partial(assert_step_close, mine, same, 0.1, whole.dtype)
                    differences += [f"{i}: {told}" for told in problem_of(close)]
                elif bits(mine) != bits(same):
                    differences.append(f"{i}: {mine} is not {same}")
            found[f"{name}, {kind}"] = differences
    return found
