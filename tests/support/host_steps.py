"""Host time of a steady step, kernels left out: ``python tests/support/host_steps.py``.

On a GPU, ``python -m bench`` measures host times of whole steps; this takes none. Ours pack their
tables and stop there, and torch's fused op does nothing. torch's step counts are tensors of the
device: on a CPU adding 1 to each takes a call of its own, on a GPU a few launches serve all, so the
last column leaves that out too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import bench_package  # noqa: F401
import torch
from shards import world_of
from torch.distributed.tensor import DTensor, Shard

import fused_optim
from bench import timing
from fused_optim import torch_compat
from fused_optim.backends import dispatch
from fused_optim.backends.interface import Needs
from fused_optim.distributed.placement import wrapped
from fused_optim.ops import OPS

CASES: dict[str, Callable[[list], torch.optim.Optimizer]] = {
    "AdamW": lambda params: fused_optim.AdamW(params, lr=1e-3),
    "torch_compat.AdamW": lambda params: torch_compat.AdamW(params, lr=1e-3),
    "Adafactor": fused_optim.Adafactor,
}
TENSORS, ROUNDS = 1000, 100


def tensors(count: int, mesh: Any = None) -> list[torch.nn.Parameter]:
    """Return small parameters with gradients, DTensors on a mesh; only their number costs time."""
    params = [torch.nn.Parameter(torch.ones(8, 4)) for _ in range(count)]
    if mesh is not None:
        whole = (8 * mesh.size(), 4)
        params = [torch.nn.Parameter(wrapped(p.data, mesh, (Shard(0),), whole)) for p in params]
    renew_gradients(params)
    return params


def renew_gradients(params: list[torch.nn.Parameter]) -> None:
    """Give every parameter a new gradient at a new address, as a backward pass may."""
    grads = [torch.zeros(8, 4) for _ in params]  # all of them while the old ones are there
    for p, grad in zip(params, grads, strict=True):
        p.grad = DTensor(grad, p._spec, requires_grad=False) if isinstance(p, DTensor) else grad


@contextlib.contextmanager
def no_kernels() -> Iterator[None]:
    """Leave out what a GPU would do: our ops' launches, and torch's fused op."""
    needs = Needs({"chunks": lambda shape: -(-shape.numel // 4096)})
    functions = dict.fromkeys(OPS, _nothing)
    backend = SimpleNamespace(needs=lambda op, launch: needs, **functions)
    with (
        mock.patch.dict(os.environ, {dispatch.TEST_VARIABLE: "triton"}),
        mock.patch.object(dispatch, "load", lambda name: backend),
        mock.patch.object(torch, "_fused_adamw_", _nothing),
    ):
        yield


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def time_parts(timer: timing.CpuTimer) -> None:
    """Print what DTensors cost over plain tensors where no sums are exchanged."""
    print(f"\n{'us per step, the shortest':36}{'plain':>8}{'DTensors':>10}{'ratio':>8}")
    with world_of(2), no_kernels():
        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        for name in ("AdamW", "torch_compat.AdamW"):
            params = [tensors(TENSORS, where) for where in (None, mesh)]
            steps = [CASES[name](mine).step for mine in params]
            same = timing.in_turns(steps, timer, ROUNDS)
            new = timing.in_turns(steps, Renewing(timer, params, steps), ROUNDS)
            for what, times in (("same gradients", same), ("new ones", new)):
                plain, parts = (1e3 * min(each.ms) for each in times)
                print(f"{name + ', ' + what:36}{plain:8.0f}{parts:10.0f}{parts / plain:8.2f}")


def main() -> None:
    timer = timing.CpuTimer()
    torch_fused = {"torch fused": lambda params: torch.optim.AdamW(params, fused=True)}
    with no_kernels():
        params = {name: tensors(TENSORS) for name in (*CASES, *torch_fused)}
        steps = [make(params[name]).step for name, make in (CASES | torch_fused).items()]
        same = timing.in_turns(steps, timer, ROUNDS)
        new = timing.in_turns(steps, Renewing(timer, list(params.values()), steps), ROUNDS)
        with mock.patch.object(torch, "_foreach_add_", _nothing):
            (least,) = timing.in_turns(steps[-1:], timer, ROUNDS)
    print(f"{'us per step, the shortest':28}{'same gradients':>16}{'new ones':>10}{'ratio':>8}"
          f"{'no counts':>11}")  # fmt: skip
    for name, old, fresh in zip(params, same, new, strict=True):
        us, ratios = 1e3 * min(fresh.ms), (min(fresh.ms) / min(t.ms) for t in (new[-1], least))
        print(f"{name:28}{1e3 * min(old.ms):16.0f}{us:10.0f}", *(f"{r:8.2f}" for r in ratios))
    time_parts(timer)


class Renewing:
    """A timer that gives a step's parameters new gradients before it."""

    def __init__(self, timer: Any, params: list, steps: list) -> None:
        self._timer, self.warm = timer, timer.warm
        self._params = list(zip(steps, params, strict=True))

    def round(self, step: Callable[[], Any], times: timing.Times) -> None:
        renew_gradients(next(params for known, params in self._params if known == step))
        self._timer.round(step, times)


if __name__ == "__main__":
    main()
