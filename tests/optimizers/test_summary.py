"""What an optimizer says when it is printed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from optimizer_table import every_optimizer

import fused_optim
from fused_optim.backends import dispatch

SHAPES = ((6, 64), (64,), (), (2, 3, 64))
TOTAL = re.compile(r"^state: ([\d,]+) bytes now, ([\d,]+) once .*, ([\d.e+]+) per element$", re.M)


def parameters(dtype: torch.dtype = torch.float32, shapes: Any = SHAPES) -> list:
    return [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes]


def total(optimizer: torch.optim.Optimizer) -> tuple[int, int, float]:
    """Bytes of state now, bytes in the end, and bytes for each element."""
    now, whole, each = TOTAL.search(repr(optimizer)).groups()
    return int(now.replace(",", "")), int(whole.replace(",", "")), float(each)


def held(optimizer: torch.optim.Optimizer) -> int:
    values = [value for kept in optimizer.state.values() for value in kept.values()]
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("capturable", [False, True])
def test_the_bytes_of_state_are_those_that_a_step_makes(row, dtype, capturable):
    options = {"capturable": True} if capturable else {}
    try:
        optimizer = row.build(parameters(dtype), **options)
    except ValueError as error:
        assert "callable learning_rate" in str(error)
        return
    now, whole, each = total(optimizer)
    elements = sum(p.numel() for p in optimizer.param_groups[0]["params"])
    assert now == 0 < whole
    assert each == pytest.approx(whole / elements, rel=1e-3)
    optimizer.init_state()
    assert total(optimizer) == (whole, whole, each)
    assert held(optimizer) == whole


@pytest.mark.parametrize("mode", ["nearest", "stochastic", "kahan", "split", "master"])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16, torch.float16, "int8"])
def test_every_precision_mode_and_its_bytes(mode, state_dtype):
    params = parameters(torch.bfloat16)
    optimizer = fused_optim.AdamW(params, low_precision=mode, state_dtype=state_dtype)
    text, (_, whole, _) = repr(optimizer), total(optimizer)
    assert f", precision {mode}, backend " in text
    assert f"low_precision: {mode}\n" in text
    optimizer.init_state()
    assert held(optimizer) == whole


def test_parameters_are_told_apart_by_how_they_are_updated():
    """Frozen and lazy ones have no state; auto is another mode for each dtype."""
    frozen = torch.nn.Parameter(torch.ones(9), requires_grad=False)
    lazy = torch.nn.UninitializedParameter()
    params = [*parameters(torch.bfloat16, ((4, 5), (6,))), *parameters(torch.float16, ((3,),))]
    optimizer = fused_optim.AdamW([*params, frozen, lazy], backend="eager")
    lines = [line for line in repr(optimizer).splitlines() if "parameters:" in line]
    assert lines == [
        "    parameters: 2 tensors, 26 elements of bfloat16 on cpu, precision split, "
        "backend eager, 10 bytes of state each",
        "    parameters: 1 tensor, 3 elements of float16 on cpu, precision master, "
        "backend eager, 12 bytes of state each",
        "    parameters: 1 tensor, 9 elements of float32 on cpu, frozen",
        "    parameters: 1 tensor, 0 elements, lazy: without memory as yet",
    ]
    assert total(optimizer) == (0, 296, 10.21)


def test_groups_show_their_own_options_and_the_whole_optimizer_its_own():
    first, second = parameters(), parameters()
    groups = [{"params": first}, {"params": second, "lr": 0.25, "weight_decay": 0.5}]
    text = repr(fused_optim.AdamW(groups, lr=0.125, max_grad_norm=2.5, seed=7))
    one, two = text.split("Parameter Group 1\n")
    assert "    lr: 0.125\n" in one and "    lr: 0.25\n" in two
    assert "    weight_decay: 0.5\n" in two and "    weight_decay: 0.0\n" in one
    for line in ("backend: auto", "max_grad_norm: 2.5", "seed: 7"):
        assert text.count(f"\n{line}\n") == 1
    assert "param_names" not in text and "Parameter containing" not in text


def test_what_was_asked_for_and_what_runs_are_both_shown(monkeypatch):
    optimizer = fused_optim.AdamW(parameters())
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "eager")
    text = repr(optimizer)
    assert "\nbackend: auto\nFUSED_OPTIM_BACKEND: eager\n" in text
    assert ", backend eager, 8 bytes" in text


def test_an_optimizer_that_cannot_step_is_printed_all_the_same(monkeypatch):
    """Printing is how one looks for what is wrong."""
    optimizer = fused_optim.AdamW(parameters(torch.float16))
    optimizer.param_groups[0]["low_precision"] = "split"
    assert ", which can't be updated: low_precision='split' works for bfloat16" in repr(optimizer)
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "bogus")
    assert "\nbackend, as it is set: FUSED_OPTIM_BACKEND='bogus' is unknown" in repr(optimizer)


def test_printing_makes_no_state_and_reads_no_device():
    params = parameters()
    optimizer = fused_optim.AdamW(params, lr=torch.tensor(0.5))
    assert "    lr: tensor(0.5000)\n" in repr(optimizer)
    assert not optimizer.state
    optimizer.param_groups[0]["lr"] = torch.empty((), device="meta")
    optimizer.param_groups[0]["betas"] = (torch.empty((), device="meta"), 0.9)
    text = repr(optimizer)
    assert "    lr: <tensor on meta>\n" in text
    assert "    betas: (<tensor on meta>, 0.9)\n" in text
