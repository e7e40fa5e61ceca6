"""What can't be right about shards: refused on every process, with words, and nothing hangs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from shards import Twins, placed, whole_of
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import fused_optim

ROWS = ("line", (Shard(0),))
COLS = ("line", (Shard(1),))


def told(function: Callable[[], Any]) -> str:
    try:
        function()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def refusals(known: dict[str, Any]) -> dict[str, Any]:
    """Return what each mistake is told on this rank."""
    odd = dist.get_rank() == dist.get_world_size() - 1  # whose process makes it
    found = {f"{name} differ": message for name, message in _differences(known, odd).items()}
    found.update(_missing_gradients(known, odd))
    found.update(_misplaced(known))
    return found


def _differences(known: dict[str, Any], odd: bool) -> dict[str, str]:
    found = {}
    for name, options in {
        "rates": {"lr": 0.1 if odd else 0.2},
        "seeds": {"seed": int(odd)},
        "modes": {"low_precision": "kahan" if odd else "auto"},
        "nothing": {},
        "unchecked rates": {"lr": 0.1 if odd else 0.2, "check_ranks": False},
    }.items():
        make = functools.partial(fused_optim.AdamW, **options)
        found[name] = told(Twins(make, [((8, 3), torch.float32, ROWS)], known).step)

    def make_in_order(params: Any) -> torch.optim.Optimizer:
        params = list(params)
        return fused_optim.AdamW(params[::-1] if odd else params)

    two = [((8, 3), torch.float32, ROWS), ((6, 5), torch.float32, COLS)]
    found["orders"] = told(Twins(make_in_order, two, known).step)

    def make_groups(params: Any) -> torch.optim.Optimizer:
        first, second = params
        groups = [[first], [second]] if odd else [[first, second]]
        return fused_optim.AdamW([{"params": group} for group in groups])

    found["groups"] = told(Twins(make_groups, two, known).step)
    return found


def _missing_gradients(known: dict[str, Any], odd: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    two = [((8, 3), torch.float32, ROWS), ((6, 5), torch.float32, COLS)]
    for name, make in {
        "AdamW": fused_optim.AdamW,
        "clipped": functools.partial(fused_optim.AdamW, max_grad_norm=1.0),
        "capturable": functools.partial(fused_optim.AdamW, max_grad_norm=1.0, capturable=True),
        "Adafactor": fused_optim.Adafactor,
    }.items():
        twins = Twins(make, two, known)
        if name != "AdamW":  # which exchanges nothing after the first step
            twins.step(2)
        before = [whole_of(p).clone() for p in twins.spread]
        twins.set_gradients(3, missing=[1] if odd else [])
        found[f"missing, {name}"] = told(twins.parts.step)
        same = [torch.equal(a, whole_of(p)) for a, p in zip(before, twins.spread, strict=True)]
        twins.set_gradients(3)
        went_on = told(twins.parts.step)
        counts = [int(twins.parts.state[p]["step"]) for p in twins.spread]
        found[f"missing, {name}, then"] = [all(same), went_on, counts]
    return found


def _misplaced(known: dict[str, Any]) -> dict[str, Any]:
    found = {}
    line = known["line"]
    other = dist.init_device_mesh("cpu", (1, dist.get_world_size()))
    ones = torch.ones(8, 3)
    on_other = DTensor.from_local(
        placed(ones, ROWS, known).to_local(),
        other,
        (Replicate(), Shard(0)),
        run_check=False,
        shape=ones.shape,
        stride=ones.stride(),
    )

    def fresh() -> Twins:
        twins = Twins(fused_optim.AdamW, [((8, 3), torch.float32, ROWS)], known)
        twins.step()
        twins.set_gradients(2)
        return twins

    def step_with(state: Any = None, grad: Any = None) -> str:
        twins = fresh()
        if state is not None:
            twins.parts.state[twins.spread[0]]["exp_avg"] = state
        if grad is not None:
            twins.spread[0].main_grad = grad
        return told(twins.parts.step)

    found["state of another mesh"] = step_with(on_other)
    found["state of other placements"] = step_with(placed(ones, ("line", (Replicate(),)), known))
    found["plain state"] = step_with(ones)
    found["gradient of another mesh"] = step_with(grad=on_other)
    found["plain gradient"] = step_with(grad=ones)
    twins = fresh()
    saved = twins.parts.state_dict()
    saved["state"][0]["exp_avg"] = on_other
    found["loaded state of another mesh"] = told(lambda: twins.parts.load_state_dict(saved))
    partial = DTensor.from_local(ones, line, (Partial(),), run_check=False)
    found["partial"] = told(lambda: fused_optim.AdamW([torch.nn.Parameter(partial)]))
    make = functools.partial(fused_optim.AdamW, max_grad_norm=1.0, clip_group=dist.group.WORLD)
    found["clip_group"] = told(Twins(make, [((8, 3), torch.float32, ROWS)], known).step)

    # A gradient that is a sum over the ranks becomes that sum.
    twins = fresh()
    summand = twins.whole[0].grad / dist.get_world_size()
    twins.spread[0].main_grad = DTensor.from_local(summand, line, (Partial(),), run_check=False)
    twins.wholes.step()
    twins.parts.step()
    off = (whole_of(twins.spread[0].detach()) - twins.whole[0].detach()).abs().max()
    found["partial gradient"] = float(off)
    found["reports"] = told(twins.parts.check_numerics)
    adafactor = Twins(fused_optim.Adafactor, [((8, 3), torch.float32, ROWS)], known)
    adafactor.set_gradients(1)
    found["reports of Adafactor"] = told(adafactor.parts.check_numerics)
    return found
