"""A step whose update is zero leaves parameters as they were, bit for bit, in every mode.

torch.distributed.checkpoint makes a step with gradients and learning rates of zero to create state
before it loads one, and must find the weights unharmed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPE_MODES, Case, TensorCase, device_of, each_backend, interpreted
from oracle import (
    adafactor,
    adafactor_torch,
    adam_torch,
    adam_weight_decay_tf,
    adamw_torch,
    adamw_transformers,
    lion,
    widen,
)
from parity import Bench
from stored import EXTRA, bits, write_bits_
from tolerances import dtype_name

import fused_optim
from fused_optim import torch_compat

DECAY = {"weight_decay": 0.1}
FIXED = {"relative_step": False, **DECAY}


def case(optimizer: type, oracle: Callable[..., Any], **options: Any) -> Case:
    return Case(optimizer, oracle, options)


# With a learning rate of zero nothing moves but Adafactor's momentum, and that starts at zero.
ELEMENTWISE = [
    case(fused_optim.AdamW, adamw_transformers, lr=0.0, **DECAY),
    case(fused_optim.AdamW, adamw_transformers, lr=0.0, maximize=True, correct_bias=False),
    case(torch_compat.AdamW, adamw_torch, lr=0.0, amsgrad=True, maximize=True, **DECAY),
    case(torch_compat.Adam, adam_torch, lr=0.0),
    case(
        fused_optim.AdamWeightDecay,
        adam_weight_decay_tf,
        learning_rate=0.0,
        weight_decay_rate=0.1,
    ),
    case(fused_optim.Lion, lion, lr=0.0, **DECAY),
]
UNSCALED = [case(fused_optim.Adafactor, adafactor, lr=0.0, scale_parameter=False, **FIXED)]
SCALED = [
    case(fused_optim.Adafactor, adafactor, lr=0.0, **FIXED),
    case(torch_compat.Adafactor, adafactor_torch, lr=0.0, **DECAY),
]
RELATIVE = [
    case(fused_optim.Adafactor, adafactor, **DECAY),
    case(fused_optim.Adafactor, adafactor, warmup_init=True, scale_parameter=False, **DECAY),
    case(fused_optim.Adafactor, adafactor, beta1=0.9),
]
RATES = [
    case(fused_optim.AdamW, adamw_transformers, lr=0.1),
    case(torch_compat.AdamW, adamw_torch, lr=0.1, weight_decay=0.0),
    case(fused_optim.AdamWeightDecay, adam_weight_decay_tf),
    case(fused_optim.Adafactor, adafactor, lr=0.1, relative_step=False, scale_parameter=False),
]


EVERY = [*ELEMENTWISE, *UNSCALED, *SCALED, *RELATIVE, *RATES]


@np.errstate(invalid="ignore")  # signalling NaNs
def patterns(dtype: torch.dtype, limit: float) -> np.ndarray:
    """Return every value of a 16-bit dtype, many of a wider one, as `bits` would: no NaN."""
    name = dtype_name(dtype)
    if dtype in (torch.bfloat16, torch.float16):
        values = np.arange(1 << 16, dtype=np.uint16)
        wide = widen(values, name)
    else:
        size = np.dtype(name).itemsize
        random = np.random.default_rng(0).bytes(size << 12)
        ends = [0.0, -0.0, np.inf, -np.inf, np.finfo(name).max, np.finfo(name).smallest_subnormal]
        values = wide = np.concatenate([np.frombuffer(random, name), np.array(ends, name)])
    return values[~np.isnan(wide) & (np.abs(wide) <= limit)]


def bench_of_patterns(case: Case, backend: str, limit: float) -> tuple[Bench, list[np.ndarray]]:
    """Return a bench whose parameters hold every pattern, for Adafactor also as a matrix."""
    tensors, values = [], []
    turn = EVERY.index(case)
    # Kernels on a CPU take long for every value; the 15 cases meet every mode five times.
    emulated = backend != "eager" and device_of(backend).type == "cpu"
    some_modes = DTYPE_MODES[turn % 3 :: 3] if emulated else DTYPE_MODES
    for dtype, mode in some_modes:
        every = patterns(dtype, limit)
        values.append(every[turn % 271 :: 271] if interpreted(backend) else every)
        tensors.append(TensorCase(values[-1].shape, dtype, mode))
        if case.family == "adafactor":
            values.append(values[-1][: values[-1].size // 3 * 3].reshape(3, -1))
            tensors.append(TensorCase(values[-1].shape, dtype, mode))
    bench = Bench(case, tensors, backend)
    for p, value in zip(bench.params, values, strict=True):
        write_bits_(p, value)
    return bench, values


def scramble_extra_state(bench: Bench) -> None:
    """Make what belongs to the parameters random: every element is stale."""
    rng = np.random.default_rng(1)
    for p in bench.params:
        for key in EXTRA.values():
            tensor = bench.optimizer.state[p].get(key)
            if tensor is not None:
                random = np.frombuffer(rng.bytes(tensor.nbytes), bits(tensor).dtype)
                write_bits_(tensor, random.reshape(tensor.shape))


def check_unmoved(bench: Bench, values: list[np.ndarray], grad: Callable[..., Any]) -> None:
    """Make three steps, each after the extra state was scrambled, and compare all bits."""
    for step in range(3):
        if step:
            scramble_extra_state(bench)
        for p in bench.params:
            p.grad = grad(p)
        bench.optimizer.step()
        for tensor, p, value in zip(bench.tensors, bench.params, values, strict=True):
            stored = bits(p)
            same = stored.view(f"u{stored.itemsize}") == value.view(f"u{value.itemsize}")
            assert same.all(), f"{tensor}, step {step}: {stored[~same]} was {value[~same]}"


def signed_zeros(p: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros_like(p)
    zeros.view(-1)[::2] = -0.0
    return zeros


@each_backend
@pytest.mark.parametrize("case", [*ELEMENTWISE, *UNSCALED], ids=str)
def test_zero_rate_and_gradients(case: Case, backend: str) -> None:
    bench, values = bench_of_patterns(case, backend, np.inf)
    check_unmoved(bench, values, signed_zeros)


@each_backend
@pytest.mark.parametrize("case", SCALED, ids=str)
def test_zero_rate_and_gradients_with_scaling(case: Case, backend: str) -> None:
    """Where the mean square overflows, alpha is 0 times infinity, here as in the peers."""
    bench, values = bench_of_patterns(case, backend, 1e15)
    check_unmoved(bench, values, signed_zeros)


@each_backend
@pytest.mark.parametrize("case", RELATIVE, ids=str)
def test_relative_steps_hold_still_while_lr_is_zero(case: Case, backend: str) -> None:
    bench, values = bench_of_patterns(case, backend, np.inf)
    for group in bench.optimizer.param_groups:
        group["lr"] = 0.0
    check_unmoved(bench, values, signed_zeros)


@each_backend
@pytest.mark.parametrize("case", [*ELEMENTWISE, *UNSCALED], ids=str)
def test_zero_rate_with_gradients(case: Case, backend: str) -> None:
    bench, values = bench_of_patterns(case, backend, np.inf)
    check_unmoved(bench, values, torch.randn_like)


@each_backend
@pytest.mark.parametrize("case", RATES, ids=str)
def test_zero_gradients_without_decay(case: Case, backend: str) -> None:
    bench, values = bench_of_patterns(case, backend, np.inf)
    check_unmoved(bench, values, signed_zeros)


@each_backend
def test_relative_steps_do_move_while_lr_is_zero_once_there_are_gradients(backend: str) -> None:
    """AdafactorSchedule of transformers writes lr 0.0 before the first real gradients."""
    bench = Bench(RELATIVE[0], [TensorCase((3, 4), d, m) for d, m in DTYPE_MODES], backend)
    bench.randomise_params(0, 1)
    for group in bench.optimizer.param_groups:
        group["lr"] = 0.0
    grads = bench.set_gradients(-1, 0)
    bench.step_and_check(1, grads)
