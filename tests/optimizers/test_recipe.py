"""A new update, added as CONTRIBUTING.md says, gets every service without code of its own."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import DTYPE_MODES
from toy import Toy, ToyRow, toy  # noqa: F401

import fused_optim
from fused_optim.backends import diagnostics, dispatch
from fused_optim.plan import records

pytestmark = pytest.mark.usefixtures("toy")
ROOT = Path(__file__).resolve().parents[2]


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    source = torch.Generator().manual_seed(3)
    return [
        torch.nn.Parameter(torch.randn(s, generator=source).to(dtype)) for s in ((40, 30), (7,))
    ]


def train(params: list[torch.nn.Parameter], optimizer: Any, steps: range) -> None:
    for step in steps:
        source = torch.Generator().manual_seed(100 + step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=source).to(p.dtype)
        optimizer.step()


def reference(dtype: torch.dtype, steps: int) -> list[torch.Tensor]:
    """The same training in float64, from the same rounded weights and gradients."""
    params = [torch.nn.Parameter(p.detach().double()) for p in parameters(dtype)]
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    for step in range(steps):
        source = torch.Generator().manual_seed(100 + step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=source).to(dtype).double()
        optimizer.step()
    return [p.detach() for p in params]


@pytest.mark.parametrize(("dtype", "mode"), DTYPE_MODES, ids=str)
def test_every_precision_mode(dtype: torch.dtype, mode: str) -> None:
    params = parameters(dtype)
    train(params, Toy(params, low_precision="auto" if mode == "none" else mode), range(5))
    ulps = {"none": 8, "nearest": 5, "stochastic": 10}.get(mode, 1)
    for p, q in zip(params, reference(dtype, 5), strict=True):
        unit = torch.finfo(dtype).eps * q.abs().clamp(min=1.0)
        assert ((p.double() - q).abs() <= ulps * unit).all()


@pytest.mark.parametrize(("dtype", "mode"), DTYPE_MODES, ids=str)
def test_a_loaded_run_goes_on_to_the_bit(dtype: torch.dtype, mode: str) -> None:
    options = {"low_precision": "auto" if mode == "none" else mode}
    params = parameters(dtype)
    optimizer = Toy(params, **options)
    train(params, optimizer, range(3))
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = Toy(others, **options)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(params, optimizer, range(3, 5))
    train(others, other, range(3, 5))
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    broken = optimizer.state_dict()
    del broken["state"][0]["momentum_buffer"]
    with pytest.raises(ValueError, match="momentum_buffer"):
        other.load_state_dict(broken)


def test_capturable_groups_step_alike() -> None:
    results = []
    for capturable in (False, True):
        params = parameters()
        optimizer = Toy(params, capturable=capturable)
        train(params, optimizer, range(4))
        results.append(params)
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q)


def test_clipping_by_the_norm() -> None:
    params, clipped = parameters(), parameters()
    optimizer = Toy(clipped, max_grad_norm=1.0)
    train(clipped, optimizer, range(1))
    source = torch.Generator().manual_seed(100)
    grads = [torch.randn(p.shape, generator=source) for p in params]
    norm = torch.cat([g.flatten() for g in grads]).norm()
    torch.testing.assert_close(optimizer.grad_norm, norm)
    for p, q, g in zip(params, clipped, grads, strict=True):
        torch.testing.assert_close(q, p - 0.1 * g / (norm + 1e-6))


def test_float32_weights_go_out_and_in() -> None:
    model = torch.nn.Linear(5, 3, dtype=torch.bfloat16)
    optimizer = Toy(model.parameters(), low_precision="master")
    train(list(model.parameters()), optimizer, range(2))
    exported = optimizer.fp32_state_dict(model)
    assert torch.equal(exported["weight"], optimizer.state[model.weight]["master"])
    optimizer.load_fp32_state_dict(model, {k: v + 1 for k, v in exported.items()})
    assert torch.equal(optimizer.state[model.weight]["master"], exported["weight"] + 1)


def test_numerics_are_checked() -> None:
    p = torch.nn.Parameter(torch.full((6,), 4.0, dtype=torch.bfloat16))
    p.grad = torch.full_like(p, 1e-3)
    (finding,) = Toy([p], low_precision="nearest").check_numerics()
    assert (finding.kind, finding.fraction) == ("vanishing", 1.0)
    assert Toy([p], low_precision="split").check_numerics() == []
    assert Toy([p], lr=0.0, low_precision="nearest").check_numerics() == []


def test_diagnostics_and_backends_that_lack_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.search(r"Toy +eager", diagnostics.report([Toy, fused_optim.AdamW]))
    monkeypatch.setenv(dispatch.TEST_VARIABLE, "triton")
    pytest.importorskip("triton")
    reason = dispatch.why_not("triton", "toy_")
    assert reason == "this version of fused_optim has no triton kernel for toy_"
    with pytest.raises(RuntimeError, match="backend='triton' can't run toy_ here: .*'auto'"):
        Toy(parameters(), backend="triton")


def test_rows_are_packed_by_their_fields() -> None:
    (words,) = [torch.frombuffer(bytearray(records.pack_rows([ToyRow(step=7)])), dtype=torch.int32)]
    assert len(words) == 16 and words[4] == 7
    assert words.view(torch.float32)[2:4].tolist() == pytest.approx([0.9, 0.1])


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="Toy, group 0: Invalid momentum: 1.0"):
        Toy(parameters(), momentum=1.0)
    with pytest.raises(TypeError, match="Toy has no option 'betas'; "):
        Toy(parameters(), betas=(0.9, 0.99))


def test_the_recipe_names_what_the_toy_is_built_from() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    recipe = text[text.index("## Add an optimizer") :].split("\n## ")[0]
    for name in ("backends/eager/", "ops.py", "`Family`", "FusedOptimizer", "scalars.py"):
        assert name in recipe
    assert "tests/support/toy.py" in recipe
