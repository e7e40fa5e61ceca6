"""Steps every kernel over odd sizes, layouts and modes; compute-sanitizer may watch it.

``python -m tools.gpu_check.kernels --backend cuda --json FILE`` alone is gpu-check's smoke test:
``--compare`` holds every result to the eager backend's on a CPU. The sizes end in the middle of
vectors, chunks and tiles. The record is rewritten after every case.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import fused_optim
from fused_optim import dispatch, precision, torch_compat
from tools.gpu_check.record import Tally

SHAPES = ((1,), (9,), (8192 + 13,), (5, 3), (33, 40), (300, 24), (2, 3, 17), (0, 4), (130, 1030))
LAYOUTS = ("dense", "strided")
STEPS = 2
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


class Sums:
    """A `GradientAccumulator`, stepped as an optimizer is: parameters become sums of gradients."""

    def __init__(self, params: list[torch.nn.Parameter], **_: Any):
        self.params = params
        self.accumulator = fused_optim.GradientAccumulator(params[0].dtype)

    @torch.no_grad()
    def step(self) -> None:
        self.accumulator([p.main_grad for p in self.params])
        for p, total in zip(self.params, self.accumulator.gradients, strict=True):
            p.copy_(total)


Make = Callable[..., Any]
OPTIMIZERS: dict[str, Make] = {
    "AdamW": lambda p, **o: fused_optim.AdamW(p, weight_decay=0.1, state_dtype=torch.bfloat16, **o),
    "torch AdamW amsgrad": lambda p, **o: torch_compat.AdamW(p, amsgrad=True, **o),
    "Adafactor": lambda p, **o: fused_optim.Adafactor(p, beta1=0.9, max_grad_norm=1.0, **o),
    "torch Adafactor": lambda p, **o: torch_compat.Adafactor(p, **o),
    "sums": Sums,
    "AdamW clipped": lambda p, **o: fused_optim.AdamW(p, max_grad_norm=1.0, **o),
    "AdamW capturable": lambda p, **o: fused_optim.AdamW(p, capturable=True, **o),
}
MODES = {
    torch.float32: ("auto",),
    torch.bfloat16: ("split", "stochastic", "nearest", "kahan", "master"),
    torch.float16: ("master", "stochastic", "nearest", "kahan"),
}


def cases(share: int = 0, of: int = 1) -> Iterator[tuple[str, torch.dtype, str, str]]:
    """Return every optimizer, dtype, mode and layout, those that are used most first.

    Two of ``of`` shares have no dtype and mode, thus no kernel, in common.
    """
    pairs = [(dtype, mode) for dtype, modes in MODES.items() for mode in modes][share::of]
    for layout, (dtype, mode), name in itertools.product(LAYOUTS, pairs, OPTIMIZERS):
        if name == "sums" and mode != MODES[dtype][0]:  # they know no modes
            continue
        yield name, dtype, mode, layout


def parameters(dtype: torch.dtype, layout: str, device: str) -> list[torch.nn.Parameter]:
    """Return parameters with gradients of several dtypes, the same on every device."""
    source = torch.Generator().manual_seed(0)
    params = []
    for number, shape in enumerate(SHAPES):
        param = torch.nn.Parameter(torch.randn(shape, generator=source).to(dtype).to(device))
        grad = torch.randn(shape, generator=source).to(precision.SUPPORTED_DTYPES[number % 4])
        if layout == "strided" and len(shape) == 2:
            grad = grad.t().contiguous().to(device).t()
        elif layout == "strided":  # an element further, which no vector load is aligned to
            grad = torch.cat([grad.flatten()[:1], grad.flatten()]).to(device)[1:].view(shape)
        param.main_grad = grad.to(device)
        params.append(param)
    return params


def trained(
    name: str, dtype: torch.dtype, mode: str, layout: str, where: tuple[str, str]
) -> list[torch.Tensor]:
    """Return the parameters after two steps on ``where``, a backend and a device."""
    backend, device = where
    params = parameters(dtype, layout, device)
    optimizer = OPTIMIZERS[name](params, low_precision=mode, backend=backend)
    for _ in range(STEPS):
        optimizer.step()
    return [p.detach().cpu() for p in params]  # waits for the device


class Worker(Tally):
    def __init__(self, options: argparse.Namespace):
        super().__init__(options.json)
        self._options = options
        self._deadline = time.monotonic() + options.seconds

    def run(self) -> int:
        """Run all cases for which there is time; returns how many failed."""
        all_cases = list(cases(*self._options.share))
        for number, case in enumerate(all_cases):
            if time.monotonic() > self._deadline:
                self.notes.append(f"{number} of {len(all_cases)} cases, for want of time")
                break
            begin = time.monotonic()
            alive = self.case(*case)
            if number == self._options.share[0] == 0:
                self.notes.append(f"{STEPS} first steps in {time.monotonic() - begin:.1f} s")
            if not alive:
                self.notes.append(f"the device does not answer after case {number + 1}")
                break
            self.write()
        self.write()
        return self.failed

    def case(self, name: str, dtype: torch.dtype, mode: str, layout: str) -> bool:
        """Run one case; returns whether the device can still be used."""
        where = (self._options.backend, self._options.device)
        try:
            result = trained(name, dtype, mode, layout, where)
            if self._options.compare:  # loosely: the parity tests are exact
                expected = trained(name, dtype, mode, layout, ("eager", "cpu"))
                for p, q in zip(result, expected, strict=True):
                    torch.testing.assert_close(p, q, rtol=TOLERANCE[p.dtype], atol=1e-6)
            self.passed += 1
        except Exception as error:
            parts = traceback.format_exception_only(error)
            parts += traceback.format_tb(error.__traceback__)[-2:]
            text = [line for part in parts for line in part.rstrip().splitlines()][:14]
            self.fail(f"{name}, {str(dtype).removeprefix('torch.')}, {mode}, {layout}", text)
            return self.alive()
        return True

    def alive(self) -> bool:
        """Return whether the device works; after an illegal access nothing in a process does."""
        try:
            torch.ones(1, device=self._options.device).cpu()
        except RuntimeError:
            return False
        return True


def _share(text: str) -> tuple[int, int]:
    number, of = map(int, text.split("/"))
    return number, of


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=dispatch.BACKENDS, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no case later")
    parser.add_argument("--share", type=_share, default=(0, 1), help="as 0/4; default: all cases")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ[dispatch.ENVIRONMENT_VARIABLE] = options.backend  # for what takes no `backend`
    worker = Worker(options)
    failed = worker.run()
    print(f"{worker.passed} passed, {failed} failed; {'; '.join(worker.notes)}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
