"""Extra state made from another precision mode's, where the two modes round in different ways."""

from __future__ import annotations

import pytest
import torch

import fused_optim
from fused_optim.precision import encoding, state

TIE = 1.0 + 2.0**-8  # between two bfloat16: to even it is 1.0, away from zero 1.0 + 2**-7


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("old", "held", "shown"),
    [("kahan", 2.0**-8, 1.0), ("master", TIE, 1.0 + 2.0**-7), ("split", -(2**15), 1.0 + 2.0**-7)],
)
@pytest.mark.parametrize("new", ["master", "split", "kahan"])
def test_what_the_parameter_shows_wins(
    old: str, held: float, shown: float, new: str, sign: float
) -> None:
    """Its value is kept where the new mode would show it so, else dropped, and never a third."""
    param = torch.full((3,), sign * shown, dtype=torch.bfloat16)
    keys = {mode: key for key, mode in state._MODE_OF_KEY.items()}
    dtypes = {"master": torch.float32, "split": torch.int16, "kahan": torch.bfloat16}
    value = held if old == "split" else sign * held
    kept = {"step": 1, keys[old]: torch.full((3,), value, dtype=dtypes[old])}
    same_rounding = {old, new} <= {"master", "split"} or old == new
    state.ensure(param, kept, state.extra_tensor(new, torch.bfloat16))
    assert set(kept) == {"step", keys[new]}
    found = encoding.decode(param, kept[keys[new]], new)
    assert found.tolist() == [sign * (TIE if same_rounding else shown)] * 3
    if new == "master" and not same_rounding:
        assert kept["master"].tolist() == [sign * shown] * 3


def test_a_remainder_says_nothing_beside_a_float16_parameter() -> None:
    """A bfloat16 run's state loads into a float16 model: its remainder belongs to other bits."""
    saved = []
    for dtype in (torch.bfloat16, torch.float16):
        param = torch.nn.Parameter(torch.full((4,), 1.5, dtype=dtype))
        optimizer = fused_optim.AdamW([param], lr=1e-3)
        param.grad = torch.ones_like(param)
        optimizer.step()
        saved.append((param, optimizer))
    (_, ours), (half, theirs) = saved
    theirs.load_state_dict(ours.state_dict())
    assert "remainder" in theirs.state[half]
    model = torch.nn.ParameterList([half])
    assert torch.equal(theirs.fp32_state_dict(model)["0"], half.detach().float())
    before = half.detach().float()
    theirs.init_state()
    assert torch.equal(theirs.state[half]["master"], before)
    assert "remainder" not in theirs.state[half]
