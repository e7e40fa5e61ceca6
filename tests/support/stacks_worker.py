"""One of two processes that train as people's stacks do: accelerate, torchtitan's loop, ZeRO."""

from __future__ import annotations

import copy
import functools
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from fsdp_shards import MAKES as RELATIVE
from fsdp_shards import WIDTH, Make, network, shard
from processes import finish, join
from shards import whole_of
from titan_loop import Trainer
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

import fused_optim

Weights = list[torch.Tensor]

MAKES: dict[str, Make] = {
    **RELATIVE,
    # With a rate that schedules can scale.
    "Adafactor": functools.partial(fused_optim.Adafactor, lr=1e-2, relative_step=False),
}


def batch(seed: int, dtype: torch.dtype) -> torch.Tensor:
    """Return inputs that are others on other ranks."""
    generator = torch.Generator().manual_seed(100 * dist.get_rank() + seed)
    return torch.randn(4, WIDTH, generator=generator).to(dtype)


def loss_of(model: nn.Module, seed: int) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    return (model(batch(seed, dtype)).float() - 1.0).square().mean()


def weights(params: Iterable[torch.Tensor]) -> Weights:
    return [whole_of(p.detach()).clone() for p in params]


class Whole:
    """The same parameters and optimizer without parts, in this process alone."""

    def __init__(self, make: Make, parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        self.theirs = [param for group in parts.param_groups for param in group["params"]]
        self.params = [nn.Parameter(one) for one in weights(self.theirs)]
        self.optimizer = make(self.params)

    def step(self) -> None:
        """Take the step that the parts are about to take, with the sums of their gradients."""
        for mine, param in zip(self.params, self.theirs, strict=True):
            mine.grad = None if param.grad is None else whole_of(param.grad).clone()
        (mine,), (group,) = self.optimizer.param_groups, self.parts.param_groups
        mine["lr"] = group["lr"]
        self.optimizer.step()


def accelerator_of_fsdp2() -> Any:
    """Return accelerate's accelerator with its FSDP2 plugin, on a CPU.

    By itself it takes the plugin on accelerators only, though what it then does runs anywhere: its
    choice of the distributed type is made for it.
    """
    import accelerate

    os.environ.update(
        RANK=str(dist.get_rank()),
        LOCAL_RANK=str(dist.get_rank()),
        WORLD_SIZE=str(dist.get_world_size()),
        LOCAL_WORLD_SIZE=str(dist.get_world_size()),
    )
    found = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    kind = accelerate.DistributedType.FSDP
    found.state.fsdp_plugin = accelerate.FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=100
    )
    found.state.distributed_type = kind
    accelerate.PartialState._shared_state["distributed_type"] = kind
    return found


def accelerated(folder: Path) -> dict[str, Any]:
    """FSDP2 by accelerate: against the whole, saved and resumed."""
    accelerator = accelerator_of_fsdp2()
    found: dict[str, Any] = {}

    def prepared(make: Make) -> tuple[nn.Module, Any, Any]:
        model = network(torch.bfloat16)
        optimizer = make(model.parameters())
        schedule = fused_optim.get_linear_schedule_with_warmup(optimizer, 2, 20)
        return accelerator.prepare(model, optimizer, schedule)

    def run(model: nn.Module, optimizer: Any, schedule: Any, steps: range, whole: Any) -> Weights:
        for step in steps:
            for micro in range(2):
                with accelerator.accumulate(model):
                    accelerator.backward(loss_of(model, 10 * step + micro))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 0.5)
                        if whole is not None:
                            whole.step()
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
        return weights(model.parameters())

    for name, make in MAKES.items():
        model, optimizer, schedule = prepared(make)
        whole = Whole(make, optimizer)
        after = run(model, optimizer, schedule, range(4), whole)
        kinds = {type(p).__name__ for g in optimizer.param_groups for p in g["params"]}
        accelerator.save_state(str(folder / name))
        went_on = run(model, optimizer, schedule, range(4, 6), None)
        rates = [group["lr"] for group in optimizer.param_groups]

        accelerator.free_memory()
        model, optimizer, schedule = prepared(make)
        with torch.no_grad():
            for param in model.parameters():
                param.zero_()
        accelerator.load_state(str(folder / name))
        found[name] = {
            "kinds": sorted(kinds),
            "after": after,
            "whole": weights(whole.params),
            "went on": went_on,
            "resumed": run(model, optimizer, schedule, range(4, 6), None),
            "same rates": rates == [group["lr"] for group in optimizer.param_groups],
            "skipped": bool(optimizer.step_was_skipped),
        }
        accelerator.free_memory()
    return found


def titan(folder: Path) -> dict[str, Any]:
    """A loop built as torchtitan's: two model parts, containers, distributed checkpoints."""
    found: dict[str, Any] = {}
    for name, make in MAKES.items():
        trainer = Trainer(shard(network(torch.bfloat16)), make, loss_of)
        whole = [Whole(make, optimizer) for optimizer in trainer.optimizers.optimizers]
        trainer.train(3, before_step=lambda mine=whole: [one.step() for one in mine])
        after = weights(trainer.model.parameters())
        dcp.save(trainer.states(), checkpoint_id=folder / name)
        trainer.train(2)

        resumed = Trainer(shard(network(torch.bfloat16)), make, loss_of)
        dcp.load(resumed.states(), checkpoint_id=folder / name)
        resumed.train(2)
        found[name] = {
            "after": after,
            "whole": [one for part in whole for one in weights(part.params)],
            "went on": weights(trainer.model.parameters()),
            "resumed": weights(resumed.model.parameters()),
            "steps": [trainer.step, resumed.step],
            "rates": [trainer.rates(), resumed.rates()],
        }
    return found


def zero(folder: Path) -> dict[str, Any]:
    """ZeroRedundancyOptimizer: the bits of DDP without it; its state gathered and given back."""
    found: dict[str, Any] = {}
    makes = {"AdamW": fused_optim.AdamW, "Lion": fused_optim.Lion}

    def ddp(dtype: torch.dtype) -> nn.Module:
        return nn.parallel.DistributedDataParallel(network(dtype))

    def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> Weights:
        for step in steps:
            with model.no_sync():
                loss_of(model, 10 * step).backward()
            loss_of(model, 10 * step + 1).backward()
            optimizer.step()
            optimizer.zero_grad()
        return weights(model.parameters())

    for name, kind in makes.items():
        for dtype in (torch.float32, torch.bfloat16):

            def both(model: nn.Module, kind: Callable = kind) -> ZeroRedundancyOptimizer:
                return ZeroRedundancyOptimizer(model.parameters(), optimizer_class=kind, lr=1e-2)

            model, plain = ddp(dtype), ddp(dtype)
            optimizer = both(model)
            expected = run(plain, kind(plain.parameters(), lr=1e-2), range(3))
            after = run(model, optimizer, range(3))
            optimizer.consolidate_state_dict(0)
            # A copy: what is gathered on a CPU is the state itself.
            saved = [copy.deepcopy(optimizer.state_dict()) if dist.get_rank() == 0 else None]
            dist.broadcast_object_list(saved, 0)
            went_on = run(model, optimizer, range(3, 5))

            again = ddp(dtype)
            with torch.no_grad():
                for param, value in zip(again.parameters(), after, strict=True):
                    param.copy_(value)
            resumed = both(again)
            resumed.load_state_dict(saved[0])
            found[f"{name}, {dtype}"] = {
                "after": after,
                "whole": expected,
                "went on": went_on,
                "resumed": run(again, resumed, range(3, 5)),
            }
    return found


CASES = (titan, zero, accelerated)

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    _, (folder,) = join()
    results = {}
    for case in CASES:
        place = Path(folder) / case.__name__
        place.mkdir(exist_ok=True)
        results[case.__name__] = case(place)
    finish(results)
