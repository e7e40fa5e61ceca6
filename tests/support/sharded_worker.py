"""Two processes that hold a part each: FSDP1, ZeRO, FSDP2 and collectives, case after case."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from processes import finish, join
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import StateDictType
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard, distribute_tensor

import fused_optim
from fused_optim import torch_compat

CLIPPED = {"lr": 0.1, "eps": 1.0, "max_grad_norm": 0.1}


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 33), nn.Tanh(), nn.Linear(33, 4)).to(dtype)


def sharded(dtype: torch.dtype = torch.float32) -> FSDP:
    model = FSDP(network(dtype), use_orig_params=True, device_id=torch.device("cpu"))
    # On a CPU, whole tensors of one parameter all come in the last one's memory, torch's too.
    FSDP.set_state_dict_type(model, StateDictType.SHARDED_STATE_DICT)
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: Any = (1,)) -> None:
    dtype = next(model.parameters()).dtype
    for seed in seeds:
        optimizer.zero_grad()
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)
        (10 * model(x).float().square().mean()).backward()
        optimizer.step()


def refusal(function: Callable[[], Any]) -> str:
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def clipping(rank: int) -> dict[str, Any]:
    """The norm over all parts, and what is refused for want of it."""
    whole = network()
    optimizer = fused_optim.AdamW(whole.parameters(), **CLIPPED)
    train(whole, optimizer)
    found: dict[str, Any] = {"whole": weights(whole), "whole norm": optimizer.grad_norm}

    model = nn.parallel.DistributedDataParallel(network())
    zero = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=fused_optim.AdamW, **CLIPPED)
    zero.optim.clip_group = dist.group.WORLD
    train(model, zero)
    found["ZeRO"], found["ZeRO norm"] = weights(model.module), zero.optim.grad_norm

    for name, make in {
        "FSDP1": lambda p: fused_optim.AdamW(p, **CLIPPED, clip_group=dist.group.WORLD),
        "FSDP1 Keras": lambda p: fused_optim.AdamWeightDecay(
            p, 0.1, epsilon=1.0, global_clipnorm=0.1, clip_group=dist.group.WORLD
        ),
    }.items():
        model = sharded()
        optimizer = make(model.parameters())
        train(model, optimizer)
        found[f"{name} norm"] = optimizer.grad_norm
        with FSDP.summon_full_params(model):
            found[name] = weights(model.module)

    model = sharded()
    before = weights(model)
    for name, make in {
        "no clip_group": lambda p: fused_optim.AdamW(p, **CLIPPED),
        "Adafactor": lambda p: fused_optim.Adafactor(p, max_grad_norm=1.0),
        "clipnorm": lambda p: fused_optim.AdamWeightDecay(
            p, clipnorm=1.0, clip_group=dist.group.WORLD
        ),
    }.items():
        optimizer = make(model.parameters())
        found[f"refused, {name}"] = refusal(lambda o=optimizer: train(model, o))
        assert not optimizer.state
    found["unchanged"] = all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    train(model, fused_optim.AdamW(model.parameters()))
    return found


def flat_adafactor(rank: int) -> dict[str, Any]:
    """FSDP1's flat vectors: without factors, and with a word about that, once."""
    found = {}
    for name, make in (
        ("Adafactor", fused_optim.Adafactor),
        ("torch_compat", torch_compat.Adafactor),
    ):
        model = FSDP(network(), use_orig_params=False, device_id=torch.device("cpu"))
        before = weights(model)
        optimizer = make(model.parameters())
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            train(model, optimizer, (1, 2, 3))
        (param,) = model.parameters()
        found[name] = {
            "told": [str(one.message) for one in told if "flat shards" in str(one.message)],
            "state": sorted(k for k in optimizer.state[param] if k not in ("step", "RMS")),
            "moved": not torch.equal(before[0], param.detach()),
        }
    return found


def no_gradients_here(rank: int) -> dict[str, Any]:
    """A rank without a gradient joins in the norm all the same, in every step."""
    param = nn.Parameter(torch.ones(3))
    optimizer = fused_optim.AdamW([param], **CLIPPED, clip_group=dist.group.WORLD)
    norms = []
    for step in range(3):
        param.grad = torch.full((3,), 2.0) if rank == 0 or step == 2 else None
        optimizer.step()
        norms.append(float(optimizer.grad_norm))
    return {"norms": norms}


def state_dicts(rank: int) -> dict[str, Any]:
    """FSDP1's state dicts of 16-bit parameters: gathered, and given back to the bit."""
    found: dict[str, Any] = {}
    setups = {
        "split": lambda p: fused_optim.AdamW(p),
        "kahan": lambda p: fused_optim.AdamW(p, low_precision="kahan"),
        "master": lambda p: fused_optim.AdamW(p, low_precision="master"),
        "fp16 moment": lambda p: fused_optim.AdamW(p, state_dtype=torch.float16),
        "8 bytes": lambda p: fused_optim.AdamW(p, state_dtype=torch.bfloat16),
        "torch_compat": lambda p: torch_compat.AdamW(p),
        "Adafactor": lambda p: fused_optim.Adafactor(p, beta1=0.9),
    }
    for name, make in setups.items():
        model = sharded(torch.bfloat16)
        optimizer = make(model.parameters())
        train(model, optimizer, (1, 2, 3))
        saved = FSDP.optim_state_dict(model, optimizer)
        found[f"{name} keys"] = sorted({k for s in saved["state"].values() for k in s})
        again = sharded(torch.bfloat16)
        with torch.no_grad():
            for p, q in zip(again.parameters(), model.parameters(), strict=True):
                p.copy_(q)
        resumed = make(again.parameters())
        resumed.load_state_dict(FSDP.optim_state_dict_to_load(again, resumed, saved))
        same = states(optimizer), states(resumed)
        train(model, optimizer, (4, 5))
        train(again, resumed, (4, 5))
        found[name] = [*same, [*states(optimizer), *bits(weights(model))]]
        found[name].append([*states(resumed), *bits(weights(again))])
    return found


def every_bit_pattern(rank: int) -> dict[str, Any]:
    """What a remainder is kept in, through the collectives that gather and scatter state."""
    dtype = fused_optim.precision.REMAINDER_DTYPE
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    mine = every.view(2, -1)[rank].clone().view(dtype)
    gathered = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(gathered, mine)
    into = torch.empty(65536, dtype=dtype)
    dist.all_gather_into_tensor(into, mine)
    broadcast = every.clone().view(dtype) if rank == 0 else torch.zeros(65536, dtype=dtype)
    dist.broadcast(broadcast, 0)
    scattered = torch.empty_like(mine)
    parts = list(every.clone().view(dtype).chunk(2)) if rank == 0 else None
    dist.scatter(scattered, parts, 0)
    mesh = dist.init_device_mesh("cpu", (2,))
    uneven = every[:65535].clone().view(dtype)
    whole = distribute_tensor(uneven, mesh, [Shard(0)]).full_tensor()
    return {
        "all_gather": torch.equal(torch.cat(gathered).view(torch.int16), every),
        "all_gather_into_tensor": torch.equal(into.view(torch.int16), every),
        "broadcast": torch.equal(broadcast.view(torch.int16), every),
        "scatter": torch.equal(scattered.view(torch.int16), every.view(2, -1)[rank]),
        "DTensor": torch.equal(whole.view(torch.int16), every[:65535]),
    }


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def bits(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [t.detach().contiguous().view(torch.uint8).clone() for t in tensors if t.dim()]


def states(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The bits of the optimizer's state, but for a root mean square, which a step makes anew."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    found = []
    for p in params:
        state = optimizer.state.get(p, {})
        found += bits([state[k] for k in sorted(state) if isinstance(state[k], torch.Tensor)])
        found.append(torch.tensor(int(state.get("step", 0))))
    return found


CASES = (clipping, flat_adafactor, no_gradients_here, state_dicts, every_bit_pattern)

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    rank, _ = join()
    finish({case.__name__: case(rank) for case in CASES})
