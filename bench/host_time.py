"""Host time of a steady step: what Python costs beside the kernels, ours and torch's in turns.

    python -m bench.host_time --tensors 1000

Kernels are left out, so that it takes no GPU: ours pack their tables and stop there, and torch's
fused op does nothing. torch's step counts are tensors of the device. On a CPU adding 1 to each
takes a call of its own, on a GPU a few launches serve all, so the last column leaves that out too.
"""

import argparse
import contextlib
import os
import timeit
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

import fused_optim
from fused_optim import torch_compat
from fused_optim.backends import dispatch
from fused_optim.backends.interface import Needs
from fused_optim.ops import OPS

CASES: dict[str, Callable[[list], torch.optim.Optimizer]] = {
    "AdamW": lambda params: fused_optim.AdamW(params, lr=1e-3),
    "torch_compat.AdamW": lambda params: torch_compat.AdamW(params, lr=1e-3),
    "Adafactor": fused_optim.Adafactor,
}
TORCH, NO_COUNTS = "torch fused", "torch fused, no counts"
ROUNDS = 5


def tensors(count: int) -> list[torch.nn.Parameter]:
    """Return small parameters with gradients; only their number costs host time."""
    params = [torch.nn.Parameter(torch.ones(8, 4)) for _ in range(count)]
    renew_gradients(params)
    return params


def renew_gradients(params: list[torch.nn.Parameter]) -> None:
    """Give every parameter a new gradient at a new address, as a backward pass may."""
    grads = [torch.zeros_like(p) for p in params]  # all of them while the old ones are there
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad


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


def measure(count: int, turns: int) -> dict[str, tuple[float, float]]:
    """Return each optimizer's seconds per step, with the same gradients and with new ones.

    The optimizers take turns, and of all their steps the shortest counts: others may use the
    machine too.
    """
    makes = {**CASES, TORCH: lambda params: torch.optim.AdamW(params, fused=True)}
    found: dict[str, tuple[float, float]] = {}

    def time(name: str, params: list, step: Callable[[], Any]) -> None:
        step()
        times = (
            min(timeit.repeat(step, before, repeat=ROUNDS, number=1))  # collects no garbage
            for before in (_nothing, lambda: renew_gradients(params))
        )
        found[name] = tuple(map(min, times, found.get(name, (float("inf"),) * 2)))

    with no_kernels():
        params = {name: tensors(count) for name in makes}
        steps = {name: make(params[name]).step for name, make in makes.items()}
        for _ in range(turns):
            for name, step in steps.items():
                time(name, params[name], step)
            with mock.patch.object(torch, "_foreach_add_", _nothing):
                time(NO_COUNTS, params[TORCH], steps[TORCH])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensors", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=25)
    arguments = parser.parse_args()
    found = measure(arguments.tensors, arguments.turns)
    print(f"{'us per step':24}{'same gradients':>16}{'new ones':>10}{'ratio':>8}{'no counts':>11}")
    for name, (same, new) in found.items():
        ratios = [new / found[peer][1] for peer in (TORCH, NO_COUNTS)]
        print(f"{name:24}{1e6 * same:16.0f}{1e6 * new:10.0f}{ratios[0]:8.2f}{ratios[1]:11.2f}")


if __name__ == "__main__":
    main()
