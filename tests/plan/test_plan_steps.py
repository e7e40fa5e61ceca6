"""The launch plan from step to step: what it keeps, checks, uploads and lets go."""

from __future__ import annotations

import copy
import ctypes
import gc
import pickle
import weakref
from types import SimpleNamespace

import pytest
import torch

import fused_optim
from fused_optim.backends import dispatch
from fused_optim.backends.interface import Launch, Needs, Tables
from fused_optim.plan import collect, steady
from fused_optim.plan import layout as plan_layout
from fused_optim.plan import upload as plan_upload

CPU = torch.device("cpu")
OPS = ("adamw_", "grad_square_sums", "adafactor_statistics", "adafactor_finalise_")
OPS += ("adafactor_update_sums", "adafactor_apply_")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list:
    """A backend whose ops pack their tables and do nothing else; lists what they were given."""
    calls: list = []

    def op(name: str):
        def run(tables: Tables, launch: Launch) -> torch.Tensor:
            calls.append((name, tables.key, tables))
            return torch.ones(len(tables.records))

        return run

    needs = Needs({"chunks": lambda shape: -(-shape.numel // 1024)})
    backend = SimpleNamespace(needs=lambda op, launch: needs, **{name: op(name) for name in OPS})
    monkeypatch.setenv(dispatch.TEST_VARIABLE, "triton")
    real = dispatch.load
    monkeypatch.setattr(dispatch, "load", lambda name: backend if name == "triton" else real(name))
    return calls


def params_of(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list:
    params = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes]
    for param in params:
        param.grad = torch.ones_like(param)
    return params


def uploads_of(step) -> int:
    before = plan_upload.uploads
    step()
    return plan_upload.uploads - before


# --- buckets -------------------------------------------------------------------------------------


def test_groups_and_steps_share_a_launch(seen: list) -> None:
    params = params_of((3,), (4,), (5,), (6,))
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.5, "weight_decay": 0.1}]
    optimizer = fused_optim.AdamW(groups, lr=1e-3)
    optimizer.step()
    assert len(seen) == 1
    tables = seen[-1][2]
    assert tables.records[:, 10].tolist() == [0, 0, 1, 1] and len(tables.rows) == 2
    params[0].grad = None
    optimizer.step()
    params[0].grad = torch.ones(3)
    optimizer.step()
    tables = seen[-1][2]
    assert len(seen) == 3 and len(tables.rows) == 3
    assert tables.rows[:, 11].tolist() == [2, 3, 3]


def test_dtypes_and_modes_are_launches_of_their_own(seen: list) -> None:
    params = params_of((3,)) + params_of((4,), dtype=torch.bfloat16)
    params += params_of((5,), dtype=torch.float16)
    fused_optim.AdamW(params).step()
    assert [(key.dtype, key.mode) for _, key, _ in seen] == [
        (torch.float32, "none"),
        (torch.bfloat16, "split"),
        (torch.float16, "master"),
    ]


def test_such_parameters_step_on_eager(seen: list) -> None:
    params = params_of((2,) * 9, (4,))
    params[0].grad = params[0].grad.permute(*range(8, -1, -1))
    fused_optim.AdamW(params).step()
    assert [len(tables.records) for _, _, tables in seen] == [1]
    assert (params[0] < 1).all() and (params[1] == 1).all()


# --- from step to step ---------------------------------------------------------------------------


def test_a_steady_step_uploads_its_rows_alone(seen: list) -> None:
    params = params_of(*[(n,) for n in range(1, 20)])
    optimizer = fused_optim.AdamW(params)
    assert uploads_of(optimizer.step) == 3  # records, rows, chunks
    for _ in range(3):
        assert uploads_of(optimizer.step) == 1
    assert [call[2].records.data_ptr() for call in seen[1:]] == [seen[0][2].records.data_ptr()] * 3
    assert [state["step"] for state in optimizer.state.values()] == [4] * 19
    assert seen[-1][2].rows[0, 11] == 4


def test_new_gradients_cost_one_copy(seen: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fills the whole table: a part of one, on a GPU, takes a temporary and a kernel besides."""
    targets, upload_ = [], plan_upload.upload_
    monkeypatch.setattr(plan_upload, "upload_", lambda *a: [targets.append(a[0]), upload_(*a)])
    params = params_of((8,), (9,))
    optimizer = fused_optim.AdamW(params)
    optimizer.step()
    kept = params[1].grad
    params[1].grad = torch.ones(9)
    assert uploads_of(optimizer.step) == 2
    assert seen[-1][2].records[1, 1] == params[1].grad.data_ptr()
    for beyond in (1, 2, 3):  # 4, 8 and 12 bytes: not aligned
        params[1].grad = torch.ones(12)[beyond:][:9]
        assert uploads_of(optimizer.step) == 2
        assert seen[-1][2].records[:, 15].tolist() == [1, 0]
    params[1].grad = kept
    optimizer.step()
    assert seen[-1][2].records[:, 15].tolist() == [1, 1]
    assert len(targets) == 3 + 5 * 2 and all(target.is_contiguous() for target in targets)


def test_columns_that_change_are_all_sent(seen: list) -> None:
    """Two at a time: a gradient's address and its dtype."""
    params = params_of((8,), (9,))
    optimizer = fused_optim.AdamW(params)
    optimizer.step()
    params[1].main_grad = torch.ones(9, dtype=torch.float64)
    assert uploads_of(optimizer.step) == 2  # with the rows
    tables = seen[-1][2]
    assert tables.records[1, 1] == params[1].main_grad.data_ptr()
    assert tables.records[:, 12].tolist() == [0, 3]


def test_maps_follow_shapes(seen: list) -> None:
    params = params_of((2000,), (5,))
    optimizer = fused_optim.AdamW(params)
    for index in (0, 1):
        params[index].grad = None
        optimizer.step()
        assert seen[-1][2].maps["chunks"].tolist() == [[[0, 0]], [[0, 0], [0, 1]]][index]
        params[index].grad = torch.ones_like(params[index])


def changes() -> dict:
    def new_dtype(optimizer, params):
        params[0].main_grad = params[0].grad.double()

    def strides(optimizer, params):
        params[0].grad = params[0].grad.t().contiguous().t()

    def param_data(optimizer, params):
        params[0].data = torch.ones_like(params[0])

    def param_strides(optimizer, params):
        params[0].data = params[0].data.t()  # of the same memory

    def state(optimizer, params):
        optimizer.state[params[0]]["exp_avg"] = torch.ones_like(params[0])

    def order_of_states(optimizer, params):
        optimizer.state[params[0]] = optimizer.state.pop(params[0])

    def loaded(optimizer, params):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    def added(optimizer, params):
        new = torch.nn.Parameter(torch.ones(3))
        new.grad = torch.ones(3)
        optimizer.add_param_group({"params": [new]})

    def replaced(optimizer, params):
        new = torch.nn.Parameter(torch.ones(4, 4))
        new.grad = torch.ones(4, 4)
        optimizer.param_groups[0]["params"][0] = new

    def no_gradient(optimizer, params):
        params[0].grad = None

    def other_step(optimizer, params):
        optimizer.state[params[0]]["step"] = 40

    every = (
        new_dtype,
        strides,
        param_data,
        param_strides,
        state,
        order_of_states,
        loaded,
        added,
        replaced,
        no_gradient,
        other_step,
    )
    return {change.__name__: change for change in every}


@pytest.mark.parametrize("name", changes())
def test_every_change_is_seen(seen: list, name: str) -> None:
    params = params_of((4, 4), (5,))
    optimizer = fused_optim.AdamW(params)
    for _ in range(2):
        optimizer.step()
    changes()[name](optimizer, params)
    optimizer.step()
    pending = collect.parameters_with_gradients(optimizer)
    records = seen[-1][2].records
    assert records[:, 0].tolist() == [p.data_ptr() for _, _, p, _, _ in pending]
    assert records[:, 1].tolist() == [g.data_ptr() for _, _, _, g, _ in pending]
    for index, (_, _, param, grad, _) in enumerate(pending):
        state = optimizer.state[param]
        assert records[index, 2] == state["exp_avg"].data_ptr()
        assert records[index, 12] == (3 if grad.dtype is torch.float64 else 0)
        assert (records[index, 7] == 0) == (grad.is_contiguous() and param.is_contiguous())
        row = records[index, 10]
        assert seen[-1][2].rows[row, 11] == state["step"]


def strides_of_gradient(tables, index: int) -> list[int]:
    """What the device's layout block says of a gradient that takes two dimensions."""
    address = int(tables.records[index, 7])
    words = (ctypes.c_int64 * plan_layout.BLOCK_SIZE).from_address(address)
    first = 1 + 2 * plan_layout.MAX_DIMS  # after the number of dimensions, sizes and the parameter
    return words[first : first + words[0]]


def test_other_strides_get_other_layout_blocks(seen: list) -> None:
    """As many blocks as before, of the same sizes, and yet others."""
    params = params_of((4, 6), (4, 6))
    optimizer = fused_optim.AdamW(params)
    for gap in (2, 3, 3, 2):
        for param in params:
            param.grad = torch.ones(4, 6 * gap + 1)[:, : 6 * gap : gap]
        optimizer.step()
        for index in range(2):
            assert strides_of_gradient(seen[-1][2], index) == [6 * gap + 1, gap]


def test_another_tensor_of_the_same_id_is_another() -> None:
    """Its object may lie where that of a dead tensor did, and its memory too."""
    value = torch.ones(3)
    other = value.detach()
    column = steady._Column("exp_avg", [value], [True])
    assert column.same_in([{"exp_avg": value}]) == [value]
    assert column.same_in([{"exp_avg": other}]) is None
    column._ids = [id(other)]
    assert column.same_in([{"exp_avg": other}]) == [other]
    del value
    gc.collect()
    assert column.same_in([{"exp_avg": other}]) is None


def test_sparse_gradients_still_get_their_error(seen: list) -> None:
    params = params_of((4, 4))
    optimizer = fused_optim.AdamW(params)
    optimizer.step()
    params[0].grad = None
    params[0].grad = torch.ones(4, 4).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


def test_hyperparameters_change_rows_and_nothing_else(seen: list) -> None:
    params = params_of((4,))
    optimizer = fused_optim.AdamW(params)
    optimizer.step()
    optimizer.param_groups[0].update(lr=0.25, betas=(0.5, 0.5), eps=1.0, weight_decay=0.1)
    assert uploads_of(optimizer.step) == 1
    row = seen[-1][2].rows.view(torch.float32)[0]
    assert row[4:6].tolist() == [0.5, 0.5] and row[9] == 1.0


def test_names_decide_on_decay_in_steady_steps_too(seen: list) -> None:
    params = params_of((4,), (5,))
    named = [("weight", params[0]), ("bias", params[1])]
    optimizer = fused_optim.AdamWeightDecay(
        named, 0.5, weight_decay_rate=0.1, exclude_from_weight_decay=["bias"]
    )
    for _ in range(3):
        optimizer.step()
        rows = seen[-1][2].rows.view(torch.float32)
        assert rows[:, 3].tolist() == pytest.approx([0.95, 1.0])
    optimizer.param_groups[0]["weight_decay"] = 0.0
    optimizer.step()
    assert set(seen[-1][2].rows.view(torch.float32)[:, 3].tolist()) == {1.0}


# --- memory --------------------------------------------------------------------------------------


def test_replaced_parameters_are_freed_before_the_next_step(seen: list) -> None:
    params = params_of((4,), (5,))
    optimizer = fused_optim.AdamW(params)
    for _ in range(2):
        optimizer.step()
    gone = [weakref.ref(params[0]), weakref.ref(params[0].grad)]
    gone += [weakref.ref(optimizer.state[params[0]]["exp_avg"])]
    del optimizer.state[params[0]]
    optimizer.param_groups[0]["params"].pop(0)
    seen.clear()
    params.pop(0)
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
    optimizer.step()
    assert len(optimizer._plans) == 1


def test_plans_are_bounded(seen: list) -> None:
    params = params_of((4,), (5,)) + params_of((6,), dtype=torch.bfloat16)
    optimizer = fused_optim.AdamW(params)
    for i in range(12):
        for index, param in enumerate(params):
            param.grad = torch.ones_like(param) if (i + index) % 3 else None
        optimizer.step()
        assert len(optimizer._plans) <= 2


def test_plans_are_neither_pickled_nor_copied(seen: list) -> None:
    optimizer = fused_optim.AdamW(params_of((4,)))
    optimizer.step()
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other._plans == {} and other._steady is None
        (param,) = other.param_groups[0]["params"]
        param.grad = torch.ones(4)
        other.step()
        assert seen[-1][2].records[0, 0] == param.data_ptr()


def test_versions_of_everything_written_are_bumped(seen: list) -> None:
    (param,) = params_of((4,), dtype=torch.bfloat16)
    optimizer = fused_optim.AdamW([param])
    for _ in range(3):
        state = optimizer.state.get(param, {})
        tensors = [param, *(v for v in state.values() if torch.is_tensor(v))]
        before = [t._version for t in tensors]
        optimizer.step()
        assert all(t._version > v for t, v in zip(tensors, before, strict=True))


def test_every_bucket_counts_its_writes_beside_one_of_eager(seen: list) -> None:
    """float64 has no kernel, so its bucket is eager's, whose operators count by themselves."""
    params = params_of((4,), (5, 6)) + params_of((4,), dtype=torch.float64)
    optimizer = fused_optim.Adafactor(params, beta1=0.9)
    for step in range(4):
        if step == 3:
            optimizer._steady = None  # the long way, and with state that was there
        tensors = list(params)
        for param in params:
            tensors += filter(torch.is_tensor, optimizer.state.get(param, {}).values())
        before = [t._version for t in tensors]
        optimizer.step()
        assert all(t._version > v for t, v in zip(tensors, before, strict=True))
    assert {key.dtype for _, key, _ in seen} == {torch.float32}


def test_auto_never_sends_cpu_tensors_to_a_gpus_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.TEST_VARIABLE, raising=False)
    assert dispatch.choose("auto", "adamw_", CPU) in ("cpu", "eager")
    monkeypatch.setenv(dispatch.TEST_VARIABLE, "triton")
    assert dispatch.choose("auto", "adamw_", CPU) == "triton"
    assert dispatch.choose("eager", "adamw_", CPU) == "eager"
    assert dispatch.choose("auto", "adamw_", CPU, torch.float64) == "eager"


def test_a_broken_compiler_cache_ends_on_eager_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = dispatch.load

    def fail(tables: Tables, launch: Launch) -> None:
        raise PermissionError(13, "no cache for you")

    broken = SimpleNamespace(adamw_=fail, needs=lambda op, launch: Needs())
    monkeypatch.setenv(dispatch.TEST_VARIABLE, "triton")
    monkeypatch.setattr(dispatch, "load", lambda name: broken if name == "triton" else real(name))
    monkeypatch.setattr(dispatch, "_given_up", {})
    (param,) = params_of((4,))
    optimizer = fused_optim.AdamW([param], lr=0.1)
    with pytest.warns(RuntimeWarning, match="no cache for you"):
        optimizer.step()
    optimizer.step()  # an error here if it warned again
    assert (param < 1).all() and optimizer.state[param]["step"] == 2
    assert "no cache for you" in dispatch.why_not("triton", "adamw_")


# --- streams -------------------------------------------------------------------------------------


def test_tables_outlive_the_kernels_of_every_stream(
    seen: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one stream the allocator's order is enough; from the second on it has to be told."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(
        plan_upload, "record_stream", lambda t, stream: told.append((t.data_ptr(), stream))
    )
    streams = [SimpleNamespace(cuda_stream=address) for address in (64, 128)]
    params = params_of((3,), (4, 4))
    params[1].grad = torch.ones(4, 8)[:, ::2]
    optimizer = fused_optim.AdamW(params)
    optimizer.step()
    tables, (plan,) = seen[-1][2], optimizer._plans.values()
    used = {t.data_ptr() for t in (tables.records, tables.rows, tables.maps["chunks"])}
    used |= {tables.scratch.data_ptr(), int(tables.records[1, 7])}  # and of the layout block
    plan.used_on(streams[0])
    plan.used_on(streams[0])
    assert not told
    for stream in (streams[1], streams[0]):
        told.clear()
        plan.used_on(stream)
        assert used <= {address for address, on in told if on is stream}
