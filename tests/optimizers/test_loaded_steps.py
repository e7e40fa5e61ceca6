"""Step counts of loaded states: each parameter's own, and the optimizer's."""

from __future__ import annotations

import copy

import pytest
import torch

import fused_optim
from fused_optim import torch_compat

COUNTS = (3, 7, 5)


def uneven(optimizer_class: type, **options) -> torch.optim.Optimizer:
    """An optimizer of three parameters that have made so many steps."""
    params = [torch.nn.Parameter(torch.ones(4)) for _ in COUNTS]
    optimizer = optimizer_class(params, **options)
    for step in range(max(COUNTS)):
        for param, count in zip(params, COUNTS, strict=True):
            param.grad = torch.ones(4) if step < count else None
        optimizer.step()
    return optimizer


def steps_of(optimizer: torch.optim.Optimizer) -> list[int]:
    return [int(optimizer.state[p]["step"]) for p in optimizer.param_groups[0]["params"]]


@pytest.mark.parametrize("peer", [torch.optim.Adam, torch_compat.Adam])
def test_a_schedule_goes_on_after_the_most_steps_of_any_parameter(peer: type) -> None:
    """A peer has no count of its own, and one parameter at least was there at every step."""
    asked = []
    ours = uneven(fused_optim.AdamWeightDecay, learning_rate=lambda step: asked.append(step) or 0.1)
    ours.load_state_dict(uneven(peer).state_dict())
    assert steps_of(ours) == list(COUNTS)
    assert ours.param_groups[0]["iterations"] == max(COUNTS)
    asked.clear()
    ours.param_groups[0]["params"][0].grad = torch.ones(4)
    ours.step()
    assert asked == [max(COUNTS)]


def test_a_groups_count_is_every_parameters() -> None:
    """As apex keeps it: in the group, and not with the parameters."""
    saved = uneven(torch_compat.AdamW).state_dict()
    for kept in saved["state"].values():
        del kept["step"]
    saved["param_groups"][0]["step"] = 9
    before = copy.deepcopy(saved)
    ours = uneven(fused_optim.AdamW)
    ours.load_state_dict(saved)
    assert steps_of(ours) == [9, 9, 9]
    assert "step" not in ours.param_groups[0]
    assert saved["param_groups"] == before["param_groups"]


def test_loading_leaves_the_dict_alone() -> None:
    for cls in (fused_optim.AdamW, fused_optim.AdamWeightDecay, torch_compat.Adam):
        saved = uneven(torch.optim.Adam).state_dict()
        before = copy.deepcopy(saved["param_groups"])
        uneven(cls).load_state_dict(saved)
        assert saved["param_groups"] == before
