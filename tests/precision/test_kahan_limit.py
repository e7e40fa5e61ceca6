"""The size below which `kahan` loses updates, and what is reported of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from precision_page import Drive

import fused_optim

BF16, FP16 = torch.bfloat16, torch.float16
BITS = {BF16: 8, FP16: 11}  # of the significand
LEAST = {BF16: 2.0**-133, FP16: 2.0**-24}

# Steps enough for a compensation to go from zero through half its parameter's spacing, and on for
# a third of them: that spacing is 512, 4,096 and 256 times the limit.
EACH = [(BF16, 0, 768), (BF16, -6, 768), (FP16, 0, 3072), (FP16, -6, 384)]
each_binade = pytest.mark.parametrize(("dtype", "exponent", "steps"), EACH, ids=str)


def weights(dtype: torch.dtype, exponent: int) -> torch.Tensor:
    """Return odd and even multiples of the spacing, all through a power of two, of both signs."""
    values = torch.arange(1.0, 2.0, 37 * torch.finfo(dtype).eps)[1:]
    return torch.cat([values, -values]).mul_(2.0**exponent).to(dtype)


def limit(dtype: torch.dtype, exponent: int) -> float:
    """Return the spacing of a compensation just below half the parameter's spacing."""
    return max(2.0 ** (exponent - 2 * BITS[dtype]), LEAST[dtype])


def run(dtype: torch.dtype, exponent: int, steps: int, share: float) -> tuple[Any, torch.Tensor]:
    """Return the findings before some of the steps, and how far the last third of them led.

    Args:
        dtype: of the weights.
        exponent: of their power of two.
        steps: how many to make.
        share: the size of the updates, in terms of the limit.
    """
    drive, found = Drive(weights(dtype, exponent), "kahan"), []
    updates = torch.full(drive.param.shape, share * limit(dtype, exponent))
    third = drive.value()
    for step in range(steps):
        drive.step(updates)
        if step % (steps // 12) == 0:
            found.append([(f.kind, f.fraction) for f in drive.optimizer.check_numerics()])
        if step == 2 * steps // 3 - 1:
            third = drive.value()
    return found, (third - drive.value()) / (steps - 2 * steps // 3) / updates.double()


@each_binade
def test_updates_of_the_limit_go_on(dtype: torch.dtype, exponent: int, steps: int) -> None:
    found, pace = run(dtype, exponent, steps, 1.0)
    assert found == [[]] * 12
    assert (pace > 0.5).all() and (pace < 1.5).all()


@each_binade
def test_smaller_ones_come_to_a_halt_and_are_reported_all_the_way(
    dtype: torch.dtype, exponent: int, steps: int
) -> None:
    """Whether they still move something or not: the answer is not a matter of luck."""
    found, pace = run(dtype, exponent, steps, 0.7)
    assert found == [[("vanishing", 1.0)]] * 12
    assert (pace == 0).any()


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_stochastic_rounding_keeps_such_updates_on_average(dtype: torch.dtype) -> None:
    """Of a quarter of a 16-bit number's limit, down to float32's own spacing."""
    drive = Drive(torch.full((1 << 14,), 1.5, dtype=dtype), "stochastic")
    size, steps = max(limit(dtype, 0) / 4, 2.0**-23), 256
    for _ in range(steps):
        drive.step(torch.full(drive.param.shape, size))
    sigma = (steps * size * torch.finfo(dtype).eps / drive.param.numel()) ** 0.5
    moved = (1.5 - drive.value()).mean().item()
    assert abs(moved - steps * size) < 3 * sigma < steps * size


@pytest.mark.parametrize("lr", [1e-5, 5e-6, 2e-6])
def test_a_weight_that_would_stop_is_reported_from_the_first_step(lr: float) -> None:
    p = torch.nn.Parameter(torch.full((64,), 1.5, dtype=BF16))
    options = {"lr": lr, "betas": (0.0, 0.0), "eps": 0.0}
    optimizer = fused_optim.AdamW([p], low_precision="kahan", **options)
    p.grad = torch.ones_like(p)
    for _ in range(200):
        (finding,) = optimizer.check_numerics()
        assert (finding.kind, finding.fraction) == ("vanishing", 1.0)
        optimizer.step()
    assert str(finding) == (
        "parameter 0 of group 0 (bfloat16, kahan): 100 % of the updates are too small to add up in "
        "the compensation; use low_precision='split' or 'master', or a larger learning rate"
    )
    for mode in ("split", "master", "stochastic"):
        assert fused_optim.AdamW([p], low_precision=mode, **options).check_numerics() == []


def test_float16_has_no_split_to_turn_to() -> None:
    p = torch.nn.Parameter(torch.ones(4, dtype=FP16))
    p.grad = torch.ones_like(p)
    (finding,) = fused_optim.AdamW([p], lr=1e-7, low_precision="kahan").check_numerics()
    assert finding.remedy == "use low_precision='master', or a larger learning rate"


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("optimizer", [fused_optim.AdamW, fused_optim.Adafactor])
def test_ordinary_training_is_not_reported(optimizer: Any, dtype: torch.dtype) -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 64), torch.nn.LayerNorm(64), torch.nn.GELU(), torch.nn.Linear(64, 4)
    ).to(dtype)
    options = {} if optimizer is fused_optim.AdamW else {"relative_step": False}
    made = optimizer(model.named_parameters(), lr=1e-3, low_precision="kahan", **options)
    for _ in range(60):
        x = torch.randn(32, 16, dtype=dtype)
        (model(x) - x[:, :4].sin()).float().square().mean().backward()
        assert made.check_numerics() == []
        made.step()
        made.zero_grad()
