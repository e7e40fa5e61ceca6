"""Runs the CUDA and the CPU kernels on CPU tensors; the tests of sanitizers start it under those.

With the path of a `_cpu` library as its argument it runs that, and else the CUDA kernels.

Sizes and shapes end in the middle of vectors, chunks and tiles. Every tensor has a block of memory
of its own, so that AddressSanitizer sees whatever goes past its end.
"""

from __future__ import annotations

import importlib.util
import sys

import torch

import fused_optim
from fused_optim import precision
from fused_optim.optimizers.gradient_accumulator import GradientAccumulator

SHAPES = ((1,), (9,), (8192 + 13,), (5, 3), (33, 40), (300, 24), (2, 3, 17), (6, 2100), (70, 3, 3))
LARGE = ((65_536 + 24,), (66_000,), (3, 22_000), (270, 248), (2, 9000, 4), (7300, 3, 3))
PAIRS = [
    (dtype, mode)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for mode in ("nearest", "stochastic", "kahan", "split", "master")
    if not (dtype is torch.float16 and mode == "split")
    and not (dtype is torch.float32 and mode != "nearest")
]


def parameters(dtype: torch.dtype, strided: bool, shapes=SHAPES) -> list[torch.nn.Parameter]:
    params = []
    for number, shape in enumerate(shapes):
        param = torch.nn.Parameter(torch.randn(shape).to(dtype))
        grad = torch.randn(shape).to(precision.SUPPORTED_DTYPES[number % 4])
        if strided and len(shape) == 2:
            grad = torch.randn(shape[::-1]).t().to(grad.dtype)
        elif strided:
            grad = torch.cat([grad.flatten()[:1], grad.flatten()])[1:].view(shape)
        param.main_grad = grad
        params.append(param)
    return params


def run(dtype: torch.dtype, mode: str, strided: bool) -> list[torch.Tensor]:
    """Return what two steps of every optimizer make of parameters."""
    torch.manual_seed(0)
    results: list[torch.Tensor] = []
    for make in (
        lambda p: fused_optim.AdamW(p, low_precision=mode, state_dtype=torch.bfloat16),
        lambda p: fused_optim.torch_compat.AdamW(p, amsgrad=True, low_precision=mode),
        lambda p: fused_optim.Lion(p, low_precision=mode, state_dtype=torch.float16),
        lambda p: fused_optim.Adafactor(p, beta1=0.9, low_precision=mode, max_grad_norm=1.0),
        lambda p: fused_optim.Adafactor(p, low_precision=mode),  # one visit for each tensor
        lambda p: fused_optim.AdamW(p, low_precision=mode, state_dtype="int8"),
    ):
        params = parameters(dtype, strided)
        optimizer = make(params)
        optimizer.step()
        optimizer.step()
        results += [p.detach() for p in params]
    return results


def run_large(dtype: torch.dtype, strided: bool) -> list[torch.Tensor]:
    """Tensors of several tiles, which take Adafactor's five launches."""
    torch.manual_seed(0)
    params = parameters(dtype, strided, LARGE)
    optimizer = fused_optim.Adafactor(params)
    optimizer.step()
    return [p.detach() for p in params]


def on_cpu(library: str) -> None:
    """Run the CPU kernels of a library, on one thread and on three."""
    spec = importlib.util.spec_from_file_location("fused_optim._cpu", library)
    sys.modules["fused_optim._cpu"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for optimizer in (fused_optim.AdamW, fused_optim.Adafactor, fused_optim.Lion):
        param = torch.nn.Parameter(torch.ones(9))
        param.grad = torch.ones(9)
        optimizer([param], backend="cpu").step()  # which raises where it doesn't run
    for dtype, mode in PAIRS:
        for strided in (False, True):
            results = []
            for threads in (1, 3):
                torch.set_num_threads(threads)
                results.append(run(dtype, mode, strided))
            assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    for dtype, strided in ((torch.float32, True), (torch.bfloat16, False)):
        assert all(p.isfinite().all() for p in run_large(dtype, strided))


def on_host_module() -> None:
    """Run the CUDA kernels, with the threads of a block in several orders."""
    from fused_optim.backends.cuda import _C

    for dtype, mode in PAIRS:
        for strided in (False, True):
            _C.take_counters()
            results = []
            for seed in (0, 1, 2) if mode in ("nearest", "split") else (3,):
                _C.set_thread_order(seed)
                results.append(run(dtype, mode, strided))
            assert _C.take_counters()["launches"] > 0
            for other in results[1:]:
                assert all(torch.equal(*pair) for pair in zip(results[0], other, strict=True))
    for dtype, strided in ((torch.float32, True), (torch.bfloat16, False)):
        results = []
        for seed in (4, 5):
            _C.set_thread_order(seed)
            results.append(run_large(dtype, strided))
        assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    accumulator = GradientAccumulator(torch.float32)
    accumulator([torch.randn(shape) for shape in SHAPES])


def main(*library: str) -> None:
    on_cpu(*library) if library else on_host_module()
    print("clean", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
