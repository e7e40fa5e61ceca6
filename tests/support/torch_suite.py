"""Inputs of torch's own optimizer tests, for our classes.

torch's wheel ships the database that its ``test/test_optim.py`` runs over, but not that file. Our
torch_compat classes take the inputs of the torch class they replace, the others a list of their own
in the same form. A test of one input, marked `over_inputs`, runs over all inputs of all classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch_database import database

import fused_optim
from fused_optim import torch_compat
from fused_optim.schedules import PolynomialDecay

TORCH_CLASSES = {
    "torch-AdamW": torch_compat.AdamW,
    "torch-Adam": torch_compat.Adam,
    "torch-Adafactor": torch_compat.Adafactor,
}
CLASSES = {
    "AdamW": fused_optim.AdamW,
    "Adafactor": fused_optim.Adafactor,
    "AdamWeightDecay": fused_optim.AdamWeightDecay,
    **TORCH_CLASSES,
}
ADAMS = ("torch-AdamW", "torch-Adam")

# What AdamWeightDecay's groups call otherwise than its constructor does.
_GROUP_KEYS = {"learning_rate": "lr", "weight_decay_rate": "weight_decay"}

_LR = {"lr": 0.01, "relative_step": False}
_OWN_INPUTS: dict[str, list[dict[str, Any]]] = {
    "AdamW": [
        {},
        {"lr": 0.01},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "maximize": True},
        {"correct_bias": False, "lr": 1e-4},
        {"betas": (0.5, 0.9), "eps": 1e-3, "max_grad_norm": 1.0},
        {"lr": torch.tensor(0.001)},
        {"capturable": True},
        {"lr": torch.tensor(0.001), "weight_decay": 0.1, "capturable": True},
    ],
    "Adafactor": [
        {},
        {"warmup_init": True},
        {"beta1": 0.9, "weight_decay": 0.1},
        {"maximize": True},
        {**_LR},
        {**_LR, "scale_parameter": False, "weight_decay": 0.1},
        {**_LR, "beta1": 0.9, "clip_threshold": 1.5, "decay_rate": -0.5, "max_grad_norm": 1.0},
        {**_LR, "weight_decay": 0.1, "maximize": True},
        {**_LR, "lr": torch.tensor(0.001)},
        {**_LR, "lr": torch.tensor(0.001), "beta1": 0.9, "capturable": True},
        {"capturable": True},
    ],
    "AdamWeightDecay": [
        {},
        {"learning_rate": 0.01},
        {"weight_decay_rate": 0.1},
        {"weight_decay_rate": 0.1, "maximize": True},
        {"weight_decay_rate": 0.1, "amsgrad": True, "clipvalue": 0.5},
        {"learning_rate": PolynomialDecay(0.01, 100), "global_clipnorm": 1.0},
        {"clipnorm": 1.0, "decay": 0.1},
        {"learning_rate": torch.tensor(0.001)},
        {"weight_decay_rate": 0.1, "capturable": True},
    ],
}


@dataclass
class Input:
    """A class of ours, with keyword arguments of its constructor that torch's tests would use."""

    name: str
    kwargs: dict[str, Any]

    @property
    def cls(self) -> type[torch.optim.Optimizer]:
        return CLASSES[self.name]

    @property
    def maximizes(self) -> bool:
        return self.kwargs.get("maximize", False)

    @property
    def own_schedule(self) -> bool:
        """Whether its learning rate follows no scheduler, and no lr of a group."""
        relative = self.name == "Adafactor" and self.kwargs.get("relative_step", True)
        return relative or callable(self.kwargs.get("learning_rate"))

    @property
    def clips_globally(self) -> bool:
        """Whether what happens to a parameter depends on the gradients of the others."""
        return any(self.kwargs.get(k) is not None for k in ("max_grad_norm", "global_clipnorm"))

    def build(self, params: Any, **changes: Any) -> torch.optim.Optimizer:
        """Return the optimizer; ``lr`` and ``weight_decay`` may go by torch's names.

        Tensors among the arguments are copies: schedulers write to them.
        """
        kwargs = copy.deepcopy(self.kwargs)
        own = {theirs: ours for ours, theirs in _GROUP_KEYS.items()}
        for key, value in changes.items():
            kwargs[own[key] if self.name == "AdamWeightDecay" and key in own else key] = value
        return self.cls(params, **kwargs)

    def build_torchs(self, params: Any, **changes: Any) -> torch.optim.Optimizer:
        """Return torch's optimizer with the same arguments, but not capturable: that needs a GPU.

        What torch takes together with ``capturable`` only is left out too.
        """
        kwargs = {**copy.deepcopy(self.kwargs), **changes}
        kwargs.pop("capturable", None)
        if torch.is_tensor(kwargs.get("lr")):
            kwargs["foreach"] = False
        if any(map(torch.is_tensor, kwargs.get("betas", ()))):
            kwargs["betas"] = tuple(beta.item() for beta in kwargs["betas"])
        return getattr(torch.optim, self.cls.__name__)(params, **kwargs)

    def in_groups(self, params: Sequence[Any], *changes: dict[str, Any], **outer: Any) -> Any:
        """Return the optimizer of one parameter group per list of parameters.

        What may differ per group stands in the groups, with ``changes``; ``outer`` is given to the
        constructor.
        """
        defaults = self.build([torch.zeros(1)]).defaults
        translated = {_GROUP_KEYS.get(k, k): v for k, v in copy.deepcopy(self.kwargs).items()}
        options = {k: v for k, v in translated.items() if k in defaults and not callable(v)}
        rest = {k: v for k, v in self.kwargs.items() if _GROUP_KEYS.get(k, k) not in options}
        groups = [
            {"params": p, **copy.deepcopy(options), **change}
            for p, change in zip(params, changes, strict=True)
        ]
        return Input(self.name, rest).build(groups, **outer)


def torch_info(name: str) -> Any:
    """Return torch's entry of the class that ours of this name replaces, or the nearest to it."""
    wanted = "Adafactor" if "Adafactor" in name else "Adam" if name == "torch-Adam" else "AdamW"
    for info in database().optim_db:
        if info.optim_cls.__name__ == wanted:
            return info
    return pytest.skip(f"this torch has no {wanted}")


def inputs(name: str) -> list[Input]:
    """Return all inputs of a class, those of torch with each implementation flag that it has.

    Ours are capturable on every device, so torch's list is the one that it uses on a GPU.
    """
    info = torch_info(name)
    if name in _OWN_INPUTS:
        return [Input(name, kwargs) for kwargs in _OWN_INPUTS[name]]
    made = database()._get_optim_inputs_including_global_cliquey_kwargs(
        "cuda", None, info, skip=("differentiable",)
    )
    return [Input(name, each.kwargs) for each in made]


def over_inputs(
    names: Sequence[str] = tuple(CLASSES), where: Callable[[Input], bool] = lambda case: True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator: a test of one input becomes one test per class, over all its inputs."""

    def decorate(body: Callable[[Input], None]) -> Callable[..., None]:
        @pytest.mark.parametrize("name", names)
        def test(name: str) -> None:
            cases = [case for case in inputs(name) if where(case)]
            assert cases
            for case in cases:
                torch.manual_seed(0)
                try:
                    body(case)
                except Exception as error:
                    raise AssertionError(f"{name}, {case.kwargs}: {error}") from error

        test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
        return test

    return decorate


# --- what torch's tests train ---------------------------------------------------------------------


class Regression:
    """A matrix and a vector, and the loss that torch's tests minimize over them."""

    def __init__(self, contiguous: bool = True) -> None:
        weight, bias = torch.randn(10, 5, 2), torch.randn(10, 2)
        if contiguous:
            weight, bias = weight[..., 0].contiguous(), bias[..., 0].contiguous()
        else:
            weight, bias = weight[..., 0], bias[..., 0]
        self.weight, self.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        self.input = torch.randn(5)

    @property
    def params(self) -> list[torch.nn.Parameter]:
        return [self.weight, self.bias]

    def loss(self) -> torch.Tensor:
        return (self.weight.mv(self.input) + self.bias).pow(2).sum()

    def backward(self) -> torch.Tensor:
        """Set the gradients anew and return the loss."""
        for p in self.params:
            p.grad = None
        loss = self.loss()
        loss.backward()
        return loss

    def train(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            self.backward()
            optimizer.step()


def assert_direction(case: Input, first: torch.Tensor, last: torch.Tensor) -> None:
    """Assert that a loss has fallen; or, where the optimizer maximizes, risen."""
    assert last > first if case.maximizes else last < first


def network(dtype: torch.dtype) -> tuple[torch.nn.Sequential, list[torch.Tensor], torch.Tensor]:
    """Return the small network of torch's comparisons, its parameters and an input.

    The last of the parameters is a scalar that is none of the network's.
    """
    torch.manual_seed(1)
    layers = (torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1), torch.nn.Sigmoid())
    model = torch.nn.Sequential(*layers).to(dtype)
    scalar = torch.rand((), dtype=dtype, requires_grad=True)
    scalar.grad = torch.rand_like(scalar)
    values = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], dtype=dtype)
    return model, [*model.parameters(), scalar], values
