"""What Lion promises beside what the tables of optimizers hold every optimizer to."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from fused_optim import AdamW, Lion


def test_every_element_moves_by_the_learning_rate() -> None:
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    optimizer = Lion([p], lr=0.5)
    p.grad = torch.tensor([1e-30, -1e30, 0.0, math.inf])
    optimizer.step()
    assert p.tolist() == [0.5, 2.5, 3.0, 3.5]


def test_decay_is_decoupled_and_takes_the_old_value() -> None:
    p = torch.nn.Parameter(torch.tensor([8.0]))
    p.grad = torch.ones(1)
    Lion([p], lr=0.25, weight_decay=0.5).step()
    assert p.item() == 8.0 * (1 - 0.25 * 0.5) - 0.25


def test_the_update_looks_at_the_new_gradient_more_than_the_momentum_does() -> None:
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = Lion([p], lr=1.0, betas=(0.5, 0.75))
    for grad, moved, momentum in ((4.0, -1.0, 1.0), (-2.0, 0.0, 0.25), (-0.25, 0.0, 0.125)):
        p.grad = torch.full((1,), grad)
        optimizer.step()
        # The third direction, 0.5 * 0.25 - 0.5 * 0.25, is 0: nothing moves.
        assert (p.item(), optimizer.state[p]["exp_avg"].item()) == (moved, momentum)


@pytest.mark.parametrize(("mode", "moves"), [("nearest", False), ("split", True), ("kahan", True)])
def test_a_bfloat16_weight_learns_from_steps_below_its_spacing(mode: str, moves: bool) -> None:
    p = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = Lion([p], lr=1e-4, low_precision=mode)
    for _ in range(100):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert bool((p < 1.0).all()) == moves
    (lost,) = optimizer.check_numerics() or [None]
    assert (lost is not None) != moves


def test_lion_pytorchs_state_dict_goes_on() -> None:
    """It counts no steps, and saves a momentum in the parameter's dtype."""
    p = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    momentum = torch.tensor([0.5, -0.25])
    optimizer = Lion([p])
    group = {"lr": 0.5, "betas": (0.75, 0.5), "weight_decay": 0.0, "params": [0]}
    optimizer.load_state_dict({"state": {0: {"exp_avg": momentum}}, "param_groups": [group]})
    p.grad = torch.tensor([-1.0, -1.0])
    optimizer.step()
    assert p.tolist() == [0.5, -0.5]  # directions 0.125 and -0.4375
    assert optimizer.state[p]["exp_avg"].tolist() == [-0.25, -0.625]


def test_another_optimizers_momentum_is_refused() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    adamw, lion = AdamW([p]), Lion([p])
    adamw.step()
    before = copy.deepcopy(lion.state_dict())
    with pytest.raises(
        ValueError, match=r"parameter 0 of group 0: .*'exp_avg_sq', which Lion does not keep"
    ):
        lion.load_state_dict(adamw.state_dict())
    assert lion.state_dict() == before
