"""Steps captured into CUDA graphs: what is refused, what a graph keeps, what a replay follows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fused_optim
from fused_optim import torch_compat
from fused_optim.backends import dispatch
from fused_optim.backends.interface import Launch, Needs, Tables
from fused_optim.plan import upload as plan_upload

OPS = ("adamw_", "grad_square_sums", "adafactor_statistics", "adafactor_finalise_")
OPS += ("adafactor_update_sums", "adafactor_apply_")

# --- without a GPU: a capture that is pretended, and a backend that packs and runs nothing -------


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Set ``on`` to pretend a capture; ``tables`` lists what the kernels would be given."""
    state = SimpleNamespace(on=False, tables=[])

    def run(tables: Tables, launch: Launch) -> torch.Tensor:
        state.tables.append((tables, tables.records.clone(), tables.rows.clone()))
        return torch.ones(len(tables.records))

    needs = Needs({"chunks": lambda shape: -(-shape.numel // 1024)}, lambda shape: 40)
    backend = SimpleNamespace(needs=lambda op, launch: needs, **dict.fromkeys(OPS, run))
    monkeypatch.setenv(dispatch.TEST_VARIABLE, "triton")
    real = dispatch.load
    monkeypatch.setattr(dispatch, "load", lambda name: backend if name == "triton" else real(name))
    monkeypatch.setattr(plan_upload, "capturing", lambda: state.on)
    monkeypatch.setattr(plan_upload, "_reserve", [])
    monkeypatch.setattr(plan_upload, "_captured", [])
    return state


def params_of(count: int = 3) -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.ones(4, 5 + i)) for i in range(count)]
    for param in params:
        param.grad = torch.ones_like(param)
    return params


def test_a_step_with_counts_on_the_host_is_refused(capture: SimpleNamespace) -> None:
    optimizer = fused_optim.AdamW(params_of())
    for _ in range(2):
        optimizer.step()
    capture.on = True
    with pytest.raises(RuntimeError, match="group 0 has capturable=False.* capturable=True"):
        optimizer.step()
    assert all(state["step"] == 2 for state in optimizer.state.values())


@pytest.mark.parametrize("lr", [0.5, torch.ones((), device="meta")], ids=["float", "elsewhere"])
def test_a_learning_rate_that_a_replay_would_not_follow_is_refused(
    capture: SimpleNamespace, lr: Any
) -> None:
    optimizer = fused_optim.AdamW(params_of(), capturable=True)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = lr
    capture.on = True
    with pytest.raises(RuntimeError, match=r"learning rate of group 0 .* fill_\(\)"):
        optimizer.step()


def test_state_can_not_be_created_in_a_capture(capture: SimpleNamespace) -> None:
    optimizer = fused_optim.AdamW(params_of(), capturable=True)
    capture.on = True
    with pytest.raises(RuntimeError, match="parameter 0 of group 0 has no state.* side stream"):
        optimizer.step()
    assert not any(optimizer.state.values())


def test_tables_need_memory_that_a_step_before_reserved(capture: SimpleNamespace) -> None:
    optimizer = fused_optim.AdamW(params_of(), capturable=True)
    optimizer.init_state()
    capture.on = True
    with pytest.raises(RuntimeError, match="pinned memory.* side stream"):
        optimizer.step()


@pytest.mark.parametrize("make", [fused_optim.AdamW, fused_optim.Adafactor, torch_compat.Adafactor])
def test_a_captured_step_keeps_to_itself(capture: SimpleNamespace, make: Any) -> None:
    params = params_of(40)
    params[3].grad = torch.ones(8, 4).t()  # a layout block is one more table
    optimizer = make(params, capturable=True)
    optimizer.step()
    plans = dict(optimizer._plans)
    before = {id(tables.records): records for tables, records, _ in capture.tables}
    capture.tables.clear()
    capture.on = True
    for param in params:
        param.grad = param.grad.clone()  # as a backward that is captured too makes them anew
    optimizer.step()
    captured = {id(tables.records): tables.records for tables, _, _ in capture.tables}
    assert captured and not captured.keys() & before.keys()
    assert dict(optimizer._plans) == plans
    for tables, _, _ in capture.tables:
        assert tables.records[:, 1].tolist() == [p.grad.data_ptr() for p in params]
    # What a replay copies again is what was packed, and nothing writes to it from now on.
    kept = [block.clone() for block in plan_upload._captured]
    assert sum(block.numel() for block in kept) >= 40 * 24 * 8
    capture.on = False
    for param in params:
        param.grad = param.grad.clone()
    optimizer.step()
    optimizer.step()
    assert all(map(torch.equal, kept, plan_upload._captured))


def test_each_capture_needs_a_step_before_it(capture: SimpleNamespace) -> None:
    optimizer = fused_optim.AdamW(params_of(), capturable=True)
    for _ in range(3):
        capture.on = False
        optimizer.step()
        capture.on = True
        optimizer.step()
    counts = {int(state["step"]) for state in optimizer.state.values()}
    assert counts == {6}


# --- on a GPU ------------------------------------------------------------------------------------


def trained(make: Any, options: dict[str, Any], *, graph: bool, steps: int = 6) -> list:
    """Train a small model on the GPU with a schedule; returns its parameters and state."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Linear(96, 8)).cuda()
    optimizer = make(model.parameters(), capturable=True, **options)
    schedule = None
    if optimizer.param_groups[0]["lr"] is not None:
        schedule = fused_optim.get_linear_schedule_with_warmup(optimizer, 2, 10)
    batches = torch.randn(steps, 32, 64, device="cuda")
    batch = batches[0].clone()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(batch).square().mean().backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    run = step
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            step()
        run = captured.replay
    for t in range(1, steps):
        if schedule is not None:
            schedule.step()
        batch.copy_(batches[t])
        run()
    torch.cuda.synchronize()
    states = [optimizer.state[p] for p in model.parameters()]
    return [*(p.detach().clone() for p in model.parameters()), *(s["step"] for s in states)]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (fused_optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
        (fused_optim.Adafactor, {"lr": 1e-2, "relative_step": False, "max_grad_norm": 0.5}),
        (fused_optim.Adafactor, {}),
        (torch_compat.AdamW, {"amsgrad": True}),
    ],
)
def test_a_replay_is_a_step(make: Any, options: dict[str, Any], backend: str) -> None:
    options = {**options, "backend": backend}
    expected = trained(make, options, graph=False)
    actual = trained(make, options, graph=True)
    assert all(map(torch.equal, actual, expected))


@pytest.mark.gpu
@pytest.mark.parametrize("make", [fused_optim.AdamW, fused_optim.Adafactor])
def test_no_step_waits_for_the_device(make: Any) -> None:
    params = [torch.nn.Parameter(torch.ones(64, 32, device="cuda")) for _ in range(3)]
    for capturable in (False, True):
        optimizer = make(params, capturable=capturable, max_grad_norm=1.0)
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                for param in params:
                    param.grad = torch.ones_like(param)
                optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
