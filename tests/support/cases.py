"""The table of cases: optimizers with their options and oracles, and the tensors they update.

One table drives every backend: `each_backend` runs a test on all four. Where there is no GPU, the
kernels run on the CPU, CUDA's compiled by a C++ compiler and Triton's interpreted.
`FUSED_OPTIM_TEST_BACKEND` names fewer backends, separated by commas. A new optimizer adds its rows
to `TABLES`, and one to `ONE_OF_EACH`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import oracle
import pytest
import torch
from reference_fp32 import MODES
from tolerances import dtype_name

import fused_optim
from fused_optim import torch_compat
from fused_optim.ops import FAMILIES

# On a GPU conftest.py renames the variable, which would send CPU tensors to its kernels.
_NAMED = os.environ.get("FUSED_OPTIM_TEST_ON_GPU") or os.environ.get("FUSED_OPTIM_TEST_BACKEND")
BACKENDS = (_NAMED or "eager,cpu,cuda,triton").split(",")
eager_only = pytest.mark.skipif("eager" not in BACKENDS, reason="about the eager backend")


def device_of(backend: str) -> torch.device:
    """Return where a backend's tensors live: on a GPU if it has kernels for one that is there."""
    if backend not in ("eager", "cpu") and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("xpu" if backend == "triton" and torch.xpu.is_available() else "cpu")


def interpreted(backend: str) -> bool:
    """Return whether a backend takes milliseconds for what the others do in microseconds."""
    return backend == "triton" and device_of(backend).type == "cpu"


def in_turns(items: list[Any], backend: str, turn: int, of: int) -> list[Any]:
    """Return all items; or where kernels are interpreted one in ``of``, all of them in turns."""
    return items[turn % of :: of] if interpreted(backend) else items


# The fixture is conftest's.
each_backend = pytest.mark.parametrize("backend", BACKENDS, indirect=True)
each_backend_slowly = pytest.mark.parametrize(
    "backend",
    [pytest.param(b, marks=[pytest.mark.long] if interpreted(b) else []) for b in BACKENDS],
    indirect=True,
)
"""For tests of so many elements or steps that they take an interpreter minutes."""


# --- optimizers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """An optimizer with its options.

    Attributes:
        optimizer: the class.
        oracle: float64 function of one step; takes the same options by the same names.
        options: of the constructor.
    """

    optimizer: type[torch.optim.Optimizer]
    oracle: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return what pytest calls the case."""
        where = "torch." if self.optimizer.__module__.endswith("torch_compat") else ""
        options = "-".join(f"{k}={v}" for k, v in self.options.items())
        return f"{where}{self.optimizer.__name__}-{options}".replace(" ", "").rstrip("-")

    @property
    def family(self) -> str:
        """Which update it runs: a name of `fused_optim.ops.FAMILIES`."""
        return self.optimizer._family

    @property
    def elementwise(self) -> bool:
        """Whether an element's update reads that element of each tensor alone."""
        return FAMILIES[self.family].elementwise

    def make(self, params: Any, backend: str = "eager", **more: Any) -> torch.optim.Optimizer:
        """Construct the optimizer."""
        return self.optimizer(params, backend=backend, **{**self.options, **more})

    def step(self, p: Any, g: Any, state: Any, t: int, dtype: torch.dtype, **more: Any) -> Any:
        """Run the oracle for a parameter of ``dtype``, whose epsilon may be a default."""
        options = {**self.options, **more}
        if self.oracle is oracle.adafactor_torch:
            eps1, eps2 = options.get("eps", (None, 1e-3))
            options["eps"] = (torch.finfo(dtype).eps if eps1 is None else eps1, eps2)
        if options.pop("decoupled_weight_decay", False):
            return oracle.adamw_torch(p, g, state, t, **options)
        return self.oracle(p, g, state, t, **options)

    @property
    def decays(self) -> bool:
        """Whether a step multiplies the parameter by a factor other than 1."""
        default = 1e-2 if self.oracle is oracle.adamw_torch else 0.0
        names = ("weight_decay", "weight_decay_rate")
        return next((self.options[n] for n in names if n in self.options), default) != 0.0


def _grid(**choices: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


_BOTH = (False, True)
_ADAM = {"lr": (1e-2,), "amsgrad": _BOTH, "maximize": _BOTH}

TRANSFORMERS_ADAMW = [
    Case(fused_optim.AdamW, oracle.adamw_transformers, options)
    for options in (
        {},
        *_grid(lr=(1e-2,), weight_decay=(0.0, 0.1, -0.1), correct_bias=_BOTH, maximize=_BOTH),
        {"lr": 0.3, "betas": (0.5, 0.6), "eps": 0.1, "weight_decay": 2.0},
    )
]
TORCH_ADAMW = [
    Case(torch_compat.AdamW, oracle.adamw_torch, options)
    for options in ({}, *_grid(**_ADAM, weight_decay=(0.0, 0.1)), {"betas": (0.5, 0.0), "eps": 0.1})
]
TORCH_ADAM = [
    Case(torch_compat.Adam, oracle.adam_torch, options)
    for options in (
        {},
        *_grid(**_ADAM, weight_decay=(0.0, 0.1)),
        {"lr": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True},
    )
]
TENSORFLOW = [
    Case(fused_optim.AdamWeightDecay, oracle.adam_weight_decay_tf, options)
    for options in (
        {},
        *_grid(amsgrad=_BOTH, maximize=_BOTH, weight_decay_rate=(0.0, 0.1)),
        {"learning_rate": 0.1, "epsilon": 0.0, "weight_decay_rate": -0.1, "decay": 0.5},
    )
]
ADAMW = [*TRANSFORMERS_ADAMW, *TORCH_ADAMW, *TORCH_ADAM, *TENSORFLOW]

TRANSFORMERS_ADAFACTOR = [
    Case(fused_optim.Adafactor, oracle.adafactor, {**rate, **options})
    for rate in (
        {},
        {"warmup_init": True},
        {"lr": 0.03, "relative_step": False},
    )
    for options in (
        *_grid(scale_parameter=_BOTH, beta1=(None, 0.9), weight_decay=(0.0, 0.1)),
        {"maximize": True, "beta1": 0.0, "weight_decay": -0.1},
        {"eps": (1e-3, 0.5), "decay_rate": -0.5, "clip_threshold": 0.3},
        {"eps": (0.0, 0.0), "clip_threshold": float("inf")},
    )
]
TORCH_ADAFACTOR = [
    Case(torch_compat.Adafactor, oracle.adafactor_torch, options)
    for options in (
        {},
        *_grid(lr=(0.7,), weight_decay=(0.0, 0.1), maximize=_BOTH),
        {"beta2_decay": -0.5, "d": 2.0, "eps": (1e-2, 0.5)},
        {"lr": 0.1, "eps": (0.0, 0.0)},
    )
]
ADAFACTOR = [*TRANSFORMERS_ADAFACTOR, *TORCH_ADAFACTOR]

LION = [
    Case(fused_optim.Lion, oracle.lion, options)
    for options in (
        {},
        *_grid(
            lr=(1e-2, 0.3),
            betas=((0.9, 0.99), (0.0, 0.5)),
            weight_decay=(0.0, 0.1),
            maximize=_BOTH,
        ),
        {"lr": 0.1, "betas": (0.95, 0.0), "weight_decay": 2.0},
    )
]

TABLES = {"adamw": ADAMW, "adafactor": ADAFACTOR, "lion": LION}
"""The cases of every update in `fused_optim.ops.FAMILIES`."""
CASES = [case for table in TABLES.values() for case in table]

ONE_OF_EACH = [
    Case(fused_optim.AdamW, oracle.adamw_transformers, {"lr": 0.01, "weight_decay": 0.1}),
    Case(torch_compat.AdamW, oracle.adamw_torch, {"lr": 0.01, "amsgrad": True}),
    Case(torch_compat.Adam, oracle.adam_torch, {"lr": 0.01, "weight_decay": 0.1}),
    Case(
        fused_optim.AdamWeightDecay,
        oracle.adam_weight_decay_tf,
        {"learning_rate": 0.01, "weight_decay_rate": 0.1},
    ),
    Case(fused_optim.Adafactor, oracle.adafactor, {"beta1": 0.9}),
    Case(
        fused_optim.Adafactor,
        oracle.adafactor,
        {"lr": 0.01, "relative_step": False, "scale_parameter": False, "weight_decay": 0.1},
    ),
    Case(torch_compat.Adafactor, oracle.adafactor_torch, {"weight_decay": 0.1}),
    Case(fused_optim.Lion, oracle.lion, {"lr": 0.01, "weight_decay": 0.1}),
]
"""Every optimizer, for tests of what does not depend on its flags."""

# --- tensors -------------------------------------------------------------------------------------

SHAPES = [
    *((), (0,), (1,), (7,), (3, 0), (0, 4), (2, 0, 3)),
    *((1, 9), (9, 1), (1, 1), (5, 4), (2, 3, 4), (1, 2, 1, 5), (2, 3, 2, 2), (2, 1, 2, 3, 2)),
]
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
STATE_DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def modes(dtype: torch.dtype) -> tuple[str, ...]:
    """Return the precision modes that a parameter of ``dtype`` may train in."""
    return MODES.get(dtype_name(dtype), ("none",))


DTYPE_MODES = [(dtype, mode) for dtype in FLOATS for mode in modes(dtype)]
LOW_PRECISION = [pair for pair in DTYPE_MODES if pair[1] != "none"]


@dataclass(frozen=True)
class TensorCase:
    """A parameter: how it is stored, and the dtypes of its gradient and moments."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    mode: str = "none"
    grad_dtype: torch.dtype | None = None  # the parameter's
    state_dtype: torch.dtype = torch.float32

    @property
    def group_options(self) -> dict[str, Any]:
        """The options of its parameter group."""
        low_precision = "auto" if self.mode == "none" else self.mode
        return {"low_precision": low_precision, "state_dtype": self.state_dtype}


def tensor_cases(shift: int, backend: str = "eager") -> list[TensorCase]:
    """Return a parameter of every dtype, mode, gradient dtype and state dtype.

    Shapes take turns that start with ``shift``, so that a table of cases run with shifts 0, 1, ...
    meets every shape in every combination.

    Where a kernel is interpreted, the dtypes of gradients and states take turns too, every dtype
    and mode with one of each at a time, so that twelve cases meet every combination. What a kernel
    does with a dtype depends on no option of the optimizer: these are but numbers to it.
    """
    shapes = itertools.islice(itertools.cycle(SHAPES), shift % len(SHAPES), None)
    few = interpreted(backend)
    tensors = []
    for turn, (dtype, mode) in enumerate(DTYPE_MODES, shift):
        states = STATE_DTYPES if dtype is not torch.float64 else STATE_DTYPES[:1]
        if few:
            states = [states[turn // 4 % len(states)]]
        grads = FLOATS[turn % 4 :: 4] if few else FLOATS
        tensors += [
            TensorCase(next(shapes), dtype, mode, grad_dtype, state_dtype)
            for grad_dtype, state_dtype in itertools.product(grads, states)
        ]
    return tensors
