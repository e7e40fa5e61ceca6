"""Adafactor and clipping over shards: within the tolerances of what they do with the whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from optimizer_table import MODES
from shards import PLAIN, Twins, here, in_turns, placings, whole_of
from tolerances import assert_statistic_close, assert_step_close, assert_trajectory_close
from torch.distributed.tensor import Replicate, Shard
from watch import watched

import fused_optim
from fused_optim import torch_compat
from fused_optim.plan.exchange import Exchange

SHAPES = ((37, 5), (3,), (70,), (8, 3, 4), (2, 2), (5, 0), (1, 70), (3, 1, 5, 2), (), (1100, 2))
UPDATES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Adafactor": functools.partial(fused_optim.Adafactor, weight_decay=0.1),
    "momentum": functools.partial(fused_optim.Adafactor, beta1=0.9, clip_threshold=0.5),
    "lr": functools.partial(
        fused_optim.Adafactor, lr=1e-2, relative_step=False, scale_parameter=False
    ),
    "torch_compat": functools.partial(torch_compat.Adafactor, weight_decay=0.1),
}


def tensors(dtype: torch.dtype) -> list[Any]:
    return [(shape, dtype, place) for shape in SHAPES for place in placings(len(shape))]


def problem_of(function: Callable[[], None]) -> list[str]:
    try:
        function()
    except AssertionError as error:
        return [str(error)]
    return []


def one_step(twins: Twins) -> list[str]:
    """Compare parameters and state after a step from the same state."""
    found, before = [], [p.detach().clone() for p in twins.whole]
    twins.step()
    for i, (whole, spread) in enumerate(zip(twins.whole, twins.spread, strict=True)):
        _, old = here(spread.detach(), before[i])
        mine, same = here(spread.detach(), whole.detach())
        update = (same.double() - old.double()).abs() + 1e-2
        close = functools.partial(assert_step_close, mine, same, update, whole.dtype, decays=True)
        found += [f"{twins.tensors[i]}: {told}" for told in problem_of(close)]
        state, other = twins.wholes.state[whole], twins.parts.state[spread]
        assert state.keys() == other.keys()
        for key, value in state.items():
            if not isinstance(value, torch.Tensor) or key in ("remainder", "compensation"):
                assert key != "step" or value == other[key]
                continue
            mine, same = here(other[key], value)
            # The clip coefficient has an error of its own, which is squared here.
            size = same.abs() * (2.0 if twins.wholes.max_grad_norm else 1.0)
            size = same.abs() + 1.0 if key in ("exp_avg", "master") else size
            close = functools.partial(assert_statistic_close, mine, same, value.dtype, size=size)
            found += [f"{twins.tensors[i]}: {key}: {told}" for told in problem_of(close)]
    return found


def many_steps(twins: Twins, mode: str) -> list[str]:
    before = [p.detach().clone() for p in twins.whole]
    twins.step(8)
    found = []
    for i, (whole, spread) in enumerate(zip(twins.whole, twins.spread, strict=True)):
        _, old = here(spread.detach(), before[i])
        mine, same = here(spread.detach(), whole.detach())
        close = functools.partial(
            assert_trajectory_close, mine, same, old, whole.dtype, mode, steps=8
        )
        found += [f"{twins.tensors[i]}: {told}" for told in problem_of(close)]
    return found


def cases() -> Iterator[tuple[str, Any, list[Any], str]]:
    for number, (name, make) in enumerate(UPDATES.items()):
        for dtype, modes in MODES.items():
            for turn, mode in enumerate(modes):
                options = {"low_precision": mode, "seed": 3 + number}
                if turn % 2:
                    options["max_grad_norm"] = 0.5
                mine = tensors(dtype)[turn % 2 :: 2] if turn else tensors(dtype)
                mode = "none" if mode == "auto" else mode
                yield f"{name} {dtype} {mode}", functools.partial(make, **options), mine, mode


def adafactor(known: dict[str, Any], every: bool) -> dict[str, list[str]]:
    """Return each case's differences; the world sizes take turns unless ``every`` case is due."""
    found = {}
    for number, (name, make, mine, mode) in enumerate(cases()):
        if every or number % 7 == 3 * dist.get_world_size() % 7:
            mine = in_turns(mine, number, every)
            found[name] = one_step(Twins(make, mine, known))
            if mode != "nearest":
                found[f"{name}, steps"] = many_steps(Twins(make, mine, known), mode)
    return found


def on_kernels(known: dict[str, Any]) -> dict[str, Any]:
    """The same where kernels take the parameters; and how many parts they took, and eager."""
    counts = {"eager": 0, "kernels": 0}
    second = Exchange.second

    def counted(exchange: Exchange, works: list[Any]) -> None:
        for work, parts in zip(works, exchange._here, strict=True):
            counts["eager" if work.plan is None else "kernels"] += len(parts)
        second(exchange, works)

    with mock.patch.object(Exchange, "second", counted):
        return {"adafactor": adafactor(known, every=False), **counts}


def collectives(known: dict[str, Any]) -> dict[str, Any]:
    """The all-reduces of steady steps, of few parameters and of many."""
    found: dict[str, Any] = {}
    setups = {
        "Adafactor": fused_optim.Adafactor,
        "Adafactor clipped": functools.partial(fused_optim.Adafactor, max_grad_norm=1.0),
        "AdamW": fused_optim.AdamW,
        "AdamW clipped": functools.partial(fused_optim.AdamW, max_grad_norm=1.0),
        "skipping": functools.partial(fused_optim.AdamW, skip_nonfinite=True),
    }
    for name, make in setups.items():
        for count in (2, 12):
            shapes = [((8, 6), torch.float32, p) for p in placings(2) if p[0]][1:]
            twins = Twins(make, (shapes * count)[: count * len(shapes)], known)
            twins.step(3)
            twins.set_gradients(4)
            with watched() as watch:
                twins.parts.step()
            found[f"{name} {count}"] = {
                "reduced": [[list(ranks), size] for ranks, size in watch.reduced],
                "spread": watch.spread,
                "others": watch.others,
            }
    found["groups"] = [
        list(dist.get_process_group_ranks(mesh.get_group(dim)))
        for mesh in known.values()
        for dim in range(mesh.ndim)
    ]
    return found


def clipping(known: dict[str, Any]) -> dict[str, Any]:
    """Norms over shards, replicas and plain tensors, against torch's of the whole."""
    found: dict[str, Any] = {"differences": [], "norms": []}
    setups = {
        "AdamW": functools.partial(fused_optim.AdamW, lr=1e-2, eps=1.0),
        "Lion": functools.partial(fused_optim.Lion, lr=1e-2),
        "clipnorm": lambda params, **_: fused_optim.AdamWeightDecay(
            list(params), 1e-2, epsilon=1.0, clipnorm=0.5
        ),
        "global_clipnorm": lambda params, **_: fused_optim.AdamWeightDecay(
            list(params), 1e-2, epsilon=1.0, global_clipnorm=0.5
        ),
    }
    for name, make in setups.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            mine = in_turns(tensors(dtype), len(name))
            twins = Twins(functools.partial(make, max_grad_norm=0.5), mine, known)
            for step in (1, 2, 3):
                twins.set_gradients(step, missing=[2, 5] if step == 3 else [])
                grads = [p.grad.double() for p in twins.whole if p.grad is not None]
                norm = torch.nn.utils.get_total_norm(grads)
                twins.wholes.step()
                twins.parts.step()
                if name != "clipnorm":
                    found["norms"].append([float(twins.parts.grad_norm), float(norm)])
            for i, (whole, spread) in enumerate(zip(twins.whole, twins.spread, strict=True)):
                mine, same = here(spread.detach(), whole.detach())
                close = functools.partial(assert_step_close, mine, same, 1e-1, whole.dtype)
                found["differences"] += [
                    f"{name} {dtype} {twins.tensors[i]}: {told}" for told in problem_of(close)
                ]
    return found


def agreements(known: dict[str, Any]) -> dict[str, Any]:
    """found_inf and non-finite gradients of one rank, seen by all of them."""
    found: dict[str, Any] = {}
    rank = dist.get_rank()
    line = ("line", (Shard(0),))
    for name, capturable in (("host", False), ("device", True)):
        make = functools.partial(fused_optim.AdamW, skip_nonfinite=True, capturable=capturable)
        places = [line, ("line", (Replicate(),)), PLAIN]
        twins = Twins(make, [((8, 3), torch.bfloat16, place) for place in places], known)
        twins.step(2)
        before = [whole_of(p).clone() for p in twins.spread]
        steps = [int(twins.parts.state[p]["step"]) for p in twins.spread]
        for bad in (float("inf"), float("nan")):
            twins.set_gradients(3)
            if rank == dist.get_world_size() - 1:
                twins.spread[0].grad.to_local()[0, 0] = bad
            twins.parts.step()
        same = [torch.equal(a, whole_of(p)) for a, p in zip(before, twins.spread, strict=True)]
        counts = [int(twins.parts.state[p]["step"]) for p in twins.spread]
        twins.set_gradients(3)
        twins.parts.step()
        found[name] = {
            "unchanged": all(same) and counts == steps,
            "skipped": twins.parts.skipped_steps,
            "went on": not torch.equal(before[0], whole_of(twins.spread[0])),
        }
    for name, make in {
        "AdamW": functools.partial(fused_optim.AdamW, lr=1e-2),
        "capturable": functools.partial(fused_optim.AdamW, lr=1e-2, capturable=True),
        "Adafactor": fused_optim.Adafactor,
    }.items():
        twins = Twins(make, [((8, 3), torch.float32, line)], known)
        twins.step()
        before = whole_of(twins.spread[0]).clone()
        twins.set_gradients(2)
        twins.parts.found_inf = torch.tensor(float(rank == 0))
        twins.parts.step()
        found[f"found_inf {name}"] = torch.equal(before, whole_of(twins.spread[0]))
        del twins.parts.found_inf
    return found
