"""`Adafactor.t5` and `Adafactor.paper`: the constructor, with its settings spelled out."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fused_optim

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adafactor.md"

RECIPES: dict[str, dict[str, Any]] = {
    "t5": {
        "lr": 1e-3,
        "clip_threshold": 1.0,
        "scale_parameter": False,
        "relative_step": False,
        "warmup_init": False,
    },
    "paper": {
        "lr": None,
        "eps": (1e-30, 1e-3),
        "clip_threshold": 1.0,
        "decay_rate": -0.8,
        "beta1": None,
        "scale_parameter": True,
        "relative_step": True,
        "warmup_init": False,
    },
}
presets = pytest.mark.parametrize("name", RECIPES)


def weights() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator) for shape in ((7, 5), (5,))]
    return [torch.nn.Parameter(one.bfloat16()) for one in made]


class Mine(fused_optim.Adafactor):
    """A user's subclass, whose constructor has a default of its own."""

    def __init__(self, params: Any, weight_decay: float = 0.25, **options: Any) -> None:
        super().__init__(params, weight_decay=weight_decay, **options)


@presets
def test_a_preset_is_its_recipe(name: str) -> None:
    optimizer = getattr(fused_optim.Adafactor, name)(weights())
    group = optimizer.param_groups[0]
    assert {option: group[option] for option in RECIPES[name]} == RECIPES[name]
    assert type(optimizer) is fused_optim.Adafactor


@presets
def test_a_preset_steps_as_the_constructor_does(name: str) -> None:
    given, spelled = weights(), weights()
    one = getattr(fused_optim.Adafactor, name)(given)
    other = fused_optim.Adafactor(spelled, **RECIPES[name])
    before = copy.deepcopy(given)
    for _ in range(3):
        for p, q in zip(given, spelled, strict=True):
            p.grad = torch.ones_like(p)
            q.grad = torch.ones_like(q)
        one.step()
        other.step()
    for p, q, old in zip(given, spelled, before, strict=True):
        assert torch.equal(p, q)
        assert not torch.equal(p, old)


@presets
def test_every_option_may_be_given_instead(name: str) -> None:
    make = getattr(fused_optim.Adafactor, name)
    options = {"clip_threshold": 2.0, "weight_decay": 0.1, "beta1": 0.9, "low_precision": "kahan"}
    optimizer = make(weights(), **options)
    settings = optimizer.settings(optimizer.param_groups[0])
    assert {option: settings[option] for option in options} == options


def test_a_rate_and_a_warmup_may_be_given() -> None:
    assert fused_optim.Adafactor.t5(weights(), 3e-4).param_groups[0]["lr"] == 3e-4
    warm = fused_optim.Adafactor.paper(weights(), warmup_init=True)
    assert warm.param_groups[0]["warmup_init"] is True
    with pytest.raises(ValueError, match="Cannot combine manual `lr`"):
        fused_optim.Adafactor.paper(weights(), lr=1e-3)


@presets
def test_a_subclass_makes_itself(name: str) -> None:
    optimizer = getattr(Mine, name)(weights())
    assert type(optimizer) is Mine
    assert optimizer.param_groups[0]["weight_decay"] == 0.25


@presets
def test_the_page_names_every_setting(name: str) -> None:
    (row,) = re.findall(rf"^\| `Adafactor\.{name}\((.*?)\)` \| `(.*?)` \|", PAGE.read_text(), re.M)
    told = eval(f"dict({row[0].removeprefix('params').removeprefix(', ')})") | eval(
        f"dict({row[1]})"
    )
    assert told == RECIPES[name]
