"""The optimizers that the tests of the torch contract run over: a new optimizer adds a row.

The rows have lively settings, weight decay above all, so that a step that ought to change nothing
shows if it does not.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import fused_optim
from fused_optim import torch_compat
from fused_optim.schedules import PolynomialDecay

SHAPES = ((6, 5), (5,), (), (2, 3, 4))


@dataclass(frozen=True)
class Row:
    """One optimizer: a class, or a function that returns one, and its settings.

    ``named`` rows choose parameters by name; what they are built from gets names.
    ``own_schedule`` rows follow no other schedule.
    """

    name: str
    make: Callable[..., torch.optim.Optimizer]
    kwargs: dict[str, Any] = field(default_factory=dict)
    named: bool = False
    own_schedule: bool = False

    def build(self, params: Any, **overrides: Any) -> torch.optim.Optimizer:
        """Return the optimizer of a module, of parameters or of groups of them."""
        if isinstance(params, torch.nn.Module):
            params = params.named_parameters() if self.named else params.parameters()
        params = list(params)
        if self.named:
            params = _with_names(params)
        return self.make(params, **{**self.kwargs, **overrides})


def _create_optimizer(params, **kwargs):
    return fused_optim.create_optimizer(params, **kwargs)[0]


def _with_names(params: list[Any]) -> list[Any]:
    if params and isinstance(params[0], dict):
        return [{**group, "params": _with_names(list(group["params"]))} for group in params]
    return [
        p if isinstance(p, tuple) else (f"{i}.{'weight' if p.dim() > 1 else 'bias'}", p)
        for i, p in enumerate(params)
    ]


ROWS = (
    Row("AdamW", fused_optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    Row("AdamW-uncorrected", fused_optim.AdamW, {"lr": 1e-3, "correct_bias": False}),
    Row("Adafactor", fused_optim.Adafactor, {"weight_decay": 0.1}, own_schedule=True),
    Row(
        "Adafactor-momentum",
        fused_optim.Adafactor,
        {"beta1": 0.9, "weight_decay": 0.1, "warmup_init": True},
        own_schedule=True,
    ),
    Row(
        "Adafactor-lr",
        fused_optim.Adafactor,
        {"lr": 1e-2, "relative_step": False, "scale_parameter": False, "weight_decay": 0.1},
    ),
    Row(
        "AdamWeightDecay",
        fused_optim.AdamWeightDecay,
        {
            "learning_rate": PolynomialDecay(1e-2, 100),
            "amsgrad": True,
            "weight_decay_rate": 0.1,
            "exclude_from_weight_decay": ["bias"],
            "global_clipnorm": 5.0,
        },
        named=True,
        own_schedule=True,
    ),
    Row(
        "create_optimizer",
        _create_optimizer,
        {
            "init_lr": 1e-2,
            "num_train_steps": 20,
            "num_warmup_steps": 3,
            "weight_decay_rate": 0.1,
            "adam_clipnorm": 3.0,
        },
        named=True,
        own_schedule=True,
    ),
    Row("Lion", fused_optim.Lion, {"lr": 1e-3, "weight_decay": 0.1}),
    Row("torch-Adam", torch_compat.Adam, {"lr": 1e-2, "weight_decay": 0.1}),
    Row("torch-AdamW", torch_compat.AdamW, {"lr": 1e-2, "weight_decay": 0.1, "amsgrad": True}),
    Row("torch-Adafactor", torch_compat.Adafactor, {"weight_decay": 0.1}),
)

every_optimizer = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)

FIRST = ("AdamW", "Adafactor", "create_optimizer")
"""The rows that slow tests run over unless all tests are asked for."""

every_optimizer_slowly = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=() if row.name in FIRST else pytest.mark.long)
        for row in ROWS
    ],
)

MODES = {
    torch.float64: ("auto",),
    torch.float32: ("auto",),
    torch.bfloat16: ("nearest", "stochastic", "kahan", "split", "master"),
    torch.float16: ("nearest", "stochastic", "kahan", "master"),
}
"""The ways to keep the float32 value of a parameter, by its dtype."""


def row(name: str) -> Row:
    """Return the row of this name."""
    return next(r for r in ROWS if r.name == name)


def parameters(dtype=torch.float32, shapes=SHAPES, seed=0) -> list[torch.nn.Parameter]:
    """Return parameters, always the same for the same arguments."""
    source = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=source).to(dtype)) for s in shapes]


def set_gradients(params: Iterable[torch.Tensor], step: int) -> None:
    """Set the gradients of step ``step``, always the same for the same shapes."""
    source = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=source).to(p.dtype)


def train(optimizer: torch.optim.Optimizer, steps: Iterable[int], skip=()) -> None:
    """Run these steps; the parameters whose numbers are in ``skip`` get no gradients."""
    for step in steps:
        params = params_of(optimizer)
        set_gradients(params, step)
        for number in skip:
            params[number].grad = None
        optimizer.step()


def params_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return all its parameters, in order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def snapshot(optimizer: torch.optim.Optimizer) -> list[Any]:
    """Return a copy of what a step may change: parameters, state, groups but for "params"."""
    params = params_of(optimizer)
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return [
        [p.detach().clone() for p in params],
        [_copied(dict(optimizer.state.get(p, {}))) for p in params],
        _copied(groups),
    ]


def _copied(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _copied(value) for key, value in x.items()}
    if isinstance(x, list):
        return [_copied(value) for value in x]
    return x.detach().clone() if isinstance(x, torch.Tensor) else x


def assert_identical(actual: Any, expected: Any, where: str = "") -> None:
    """Assert that nested lists and dicts are equal: in types, dtypes and every bit of tensors."""
    assert type(actual) is type(expected), f"{where}: {type(actual)} is not {type(expected)}"
    if isinstance(actual, dict):
        assert actual.keys() == expected.keys(), where
        for key in actual:
            assert_identical(actual[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(actual, list):
        assert len(actual) == len(expected), where
        for i, pair in enumerate(zip(actual, expected, strict=True)):
            assert_identical(*pair, f"{where}[{i}]")
    elif isinstance(actual, torch.Tensor):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape), where
        assert torch.equal(_bits(actual), _bits(expected)), f"{where}: {actual} is not {expected}"
    else:
        assert actual == expected, where


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def through_disk(value: Any) -> Any:
    """Return ``value`` saved and loaded again, as a checkpoint is."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
