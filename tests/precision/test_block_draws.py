"""Random bits go by an element's number, whichever block of the eager backend it is in."""

from __future__ import annotations

import pytest
import torch
from cases import eager_only

import fused_optim
from fused_optim.precision import encoding

pytestmark = eager_only

LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "sliced": lambda t: torch.stack([t, t], -1)[..., 0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(12, 10), (1, 120), (5, 4, 6)], ids=str)
@pytest.mark.parametrize("make", [fused_optim.AdamW, fused_optim.Adafactor])
def test_blocks_draw_what_the_whole_does(
    make: type, shape: tuple[int, ...], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but weight decay moves the parameters, so that no sum's order can show."""
    values, results = torch.randn(shape).bfloat16(), []
    for block in (encoding._BLOCK["cpu"], 16, 7):
        monkeypatch.setitem(encoding._BLOCK, "cpu", block)
        param = torch.nn.Parameter(LAYOUTS[layout](values.clone()))
        options = {"relative_step": False} if make is fused_optim.Adafactor else {}
        optimizer = make([param], lr=0.1, weight_decay=0.1, low_precision="stochastic", **options)
        for _ in range(2):
            param.grad = torch.zeros_like(param)
            optimizer.step()
        results.append(param.detach().clone())
    assert not torch.equal(results[0], values)
    assert all(torch.equal(results[0], other) for other in results[1:])
