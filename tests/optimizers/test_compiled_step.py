"""A whole train step under torch.compile: one graph break, at `step`, and no compiling later."""

from __future__ import annotations

import copy

import pytest
import torch
from optimizer_table import Row, every_optimizer
from torch import nn

from fused_optim.schedules import get_linear_schedule_with_warmup

OF_TORCH = ("Tensor.backward()", "Optimizer.zero_grad")
"""Calls at which dynamo breaks the graph of any train step, whatever its optimizer."""

compile_ready = pytest.mark.skipif(
    not torch._dynamo.is_dynamo_supported(), reason="torch.compile doesn't run here"
)


@compile_ready
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of dynamo itself
@every_optimizer
def test_a_train_step_breaks_once_and_compiles_once(row: Row) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    compiled = copy.deepcopy(plain)
    losses = []
    for model in (plain, compiled):
        optimizer = row.build(model)
        own = row.own_schedule
        scheduler = None if own else get_linear_schedule_with_warmup(optimizer, 5, 50)

        def train(x: torch.Tensor, model=model, optimizer=optimizer) -> torch.Tensor:
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        step = train
        if model is compiled:
            torch._dynamo.utils.counters.clear()
            step = torch.compile(train, backend="aot_eager")
        source, found = torch.Generator().manual_seed(1), []
        for number in range(50):
            found.append(step(torch.randn(4, 6, generator=source)))
            if scheduler is not None:
                scheduler.step()
            if model is compiled and number == 1:
                counters = torch._dynamo.utils.counters
                breaks, graphs = dict(counters["graph_break"]), dict(counters["stats"])
        losses.append(torch.stack(found))
    ours = [reason for reason in breaks if not any(name in reason for name in OF_TORCH)]
    assert ours and all("step" in reason for reason in ours), breaks
    assert dict(torch._dynamo.utils.counters["stats"]) == graphs
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-6)
