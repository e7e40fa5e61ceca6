"""The launch plan: what it packs, what it keeps, what it uploads and what it lets go."""

from __future__ import annotations

import itertools
import math
import struct
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from entries import ROW, entry_of, key_of

from fused_optim.backends import dispatch
from fused_optim.backends.interface import (
    Bucket,
    Counts,
    Launch,
    Needs,
    Shape,
    Tables,
    TensorEntry,
)
from fused_optim.ops import RECORD_FIELDS, AdafactorRow, AdamWRow
from fused_optim.plan import layout as plan_layout
from fused_optim.plan import records as plan_records
from fused_optim.plan import upload as plan_upload
from fused_optim.plan.tables import Plan

_NUMBERS = itertools.count()


def fields(bucket: Bucket) -> list[dict[str, int]]:
    rows = packed(bucket).records.tolist()
    return [dict(zip(RECORD_FIELDS, row, strict=False)) for row in rows]


def packed(bucket: Bucket) -> Plan:
    plan = Plan(bucket.key, "under test")
    plan.pack(bucket)
    return plan


def tables_of(
    plan: Plan, launch: Launch | None = None, scratch: Counts | None = None, **maps: Counts
) -> Tables:
    """What an op would be given whose backend needs these maps and this scratch memory."""
    backend = SimpleNamespace(needs=lambda op, launch: Needs(maps, scratch))
    with mock.patch.object(dispatch, "load", lambda name: backend):
        return plan.tables(f"op {next(_NUMBERS)}", launch or Launch())  # which no call knows yet


def in_parts_of(size: int) -> Counts:
    return lambda shape: -(-shape.numel // size)


# --- packing -------------------------------------------------------------------------------------


def test_records() -> None:
    key = key_of(torch.bfloat16, "split")
    entry = entry_of(key, (3, 5), grad=torch.float64, state=torch.float16, number=7)
    (record,) = fields(Bucket(key, entries=[entry], rows=[ROW]))
    for name in ("param", "grad", "exp_avg", "exp_avg_sq", "extra"):
        assert record[name] == getattr(entry, name).data_ptr()
    assert record["max_exp_avg_sq"] == record["rms"] == record["layout"] == 0
    assert (record["numel"], record["number"], record["row"]) == (15, 7, 0)
    tags = ("grad_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
    assert [record[tag] for tag in tags] == [3, 1, 0]
    assert record["flags"] == 1


def test_adafactor_shapes() -> None:
    key = key_of(torch.float32, "none", op="adafactor")
    shapes = [(), (5,), (3, 4), (2, 3, 4, 5), (0, 4)]
    entries = [TensorEntry(torch.ones(s), torch.ones(s), exp_avg_sq=torch.ones(1)) for s in shapes]
    found = fields(Bucket(key, entries=entries, rows=[AdafactorRow()]))
    assert [(r["batch"], r["rows"], r["cols"]) for r in found] == [
        (1, 1, 1),
        (1, 1, 5),
        (1, 3, 4),
        (6, 4, 5),
        (1, 0, 4),
    ]


@pytest.mark.parametrize("beyond", [4, 8, 12])
def test_only_aligned_addresses_are_called_so(beyond: int) -> None:
    key = key_of(torch.float32, "none")
    for name in ("param", "grad", "exp_avg", "exp_avg_sq"):
        entry = entry_of(key, (8,))
        setattr(entry, name, torch.ones(11)[beyond // 4 :][:8])
        assert getattr(entry, name).data_ptr() % 16 == beyond
        (record,) = fields(Bucket(key, entries=[entry], rows=[ROW]))
        assert (record["flags"], record["layout"]) == (0, 0)


def test_rows_are_rounded_once() -> None:
    row = AdamWRow(omb1=0.1, b2=1 - 1e-9, step_size=1e300, eps=1e-60, step=2**32 + 5)
    words = plan_records.pack_rows([row, AdafactorRow(flags=5, step=9, rho=-1e39)])
    values = struct.unpack("=11fI16x13fII4x", words)
    assert values[4] == torch.tensor(0.1).item() and values[5] == 1.0
    assert values[7] == math.inf and values[9] == 0.0 and values[11] == 5
    assert values[1] == math.inf and values[13] == -math.inf and values[-2:] == (9, 5)


@pytest.mark.parametrize(
    ("value", "packed"),
    [(3.4028235e38, 3.4028234663852886e38), (3.4028236e38, math.inf), (-3.45e38, -math.inf)],
)
def test_what_rounds_to_infinity_is_packed_so(value: float, packed: float) -> None:
    words = plan_records.pack_rows([AdamWRow(step_size=value)])
    assert struct.unpack_from("=11f", words)[7] == packed


def test_maps() -> None:
    key, thousand, two = key_of(torch.float32, "none"), in_parts_of(1024), in_parts_of(2048)
    entries = [entry_of(key, (n,)) for n in (0, 1, 1024, 1025, 0)]
    plan = packed(Bucket(key, entries=entries, rows=[ROW]))
    maps = tables_of(plan, small=thousand, large=two).maps
    assert maps["small"].tolist() == [[1, 0], [2, 0], [3, 0], [3, 1]]
    assert maps["large"].tolist() == [[1, 0], [2, 0], [3, 0]]
    assert tables_of(plan, small=thousand).maps["small"] is maps["small"]
    empty = packed(Bucket(key, entries=entries[:1], rows=[ROW]))
    assert tables_of(empty, chunks=thousand).maps["chunks"].shape == (0, 2)
    assert (tables_of(plan).some_empty, tables_of(empty).some_empty) == (True, True)
    assert not tables_of(packed(Bucket(key, entries=entries[1:2], rows=[ROW]))).some_empty


def test_counts_are_told_of_shards() -> None:
    key = key_of(torch.float32, "none", op="adafactor")
    tensors = [torch.ones(s) for s in ((2, 3), (4,))]
    entries = [TensorEntry(t, t, exp_avg_sq=torch.ones(1)) for t in tensors]
    plan = packed(Bucket(key, entries=entries, rows=[AdafactorRow()]))
    for sharded in (False, True):
        plan.host[1, RECORD_FIELDS.index("global_numel")] += sharded
        shapes: list[Shape] = []
        tables_of(plan, tiles=lambda shape, into=shapes: into.append(shape) or 1)
        assert shapes == [Shape(1, 2, 3, sharded), Shape(1, 1, 4, sharded)]


@pytest.mark.parametrize("mode", ["nearest", "stochastic"])
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
def test_tables_say_whether_anything_is_rounded_at_random(mode: str, state: torch.dtype) -> None:
    key = key_of(torch.bfloat16, mode)
    plan = packed(Bucket(key, entries=[entry_of(key, (3,), state=state)], rows=[ROW]))
    assert tables_of(plan).draws == (mode == "stochastic" or state is torch.bfloat16)


def test_scratch_is_laid_out_once() -> None:
    key = key_of(torch.float32, "none", op="adafactor")
    tensors = [torch.ones(s) for s in ((4, 3), (0,), (7,))]
    entries = [TensorEntry(t, t, exp_avg_sq=torch.ones(1)) for t in tensors]
    plan = packed(Bucket(key, entries=entries, rows=[AdafactorRow()]))

    def size(shape: Shape) -> int:
        return shape.rows * 40

    tables = tables_of(plan, scratch=size)
    scratch = RECORD_FIELDS.index("scratch")
    assert tables.records[:, scratch].tolist() == [0, 160, 160]
    assert plan.scratch_numel == 160 + 64 and tables.scratch.numel() == 224
    assert tables_of(plan, scratch=size).scratch is tables.scratch


def test_scratch_stays_laid_out_when_tables_are_packed_anew() -> None:
    key = key_of(torch.float32, "none", op="adafactor")

    def size(shape: Shape) -> int:
        return shape.rows * 40

    plan = Plan(key, "under test")
    for shapes, expected in ((((4, 3), (7,)), [0, 160]), (((2, 3), (7,)), [0, 96])):
        tensors = [torch.ones(shape) for shape in shapes]
        entries = [TensorEntry(t, t, exp_avg_sq=torch.ones(1)) for t in tensors]
        plan.pack(Bucket(key, entries=entries, rows=[AdafactorRow()]))
        tables = tables_of(plan, scratch=size)
        assert tables.records[:, RECORD_FIELDS.index("scratch")].tolist() == expected


def test_constants_stand_for_what_is_absent() -> None:
    plan = packed(Bucket(key_of(torch.float32, "none"), rows=[ROW]))
    tables = tables_of(plan, Launch(seed=(0xFFFFFFFF << 32) | 7))
    assert (tables.grad_scale.item(), tables.found_inf.item(), tables.clip.item()) == (1, 0, 1)
    assert (tables.clip_stride, tables.seed_low, tables.seed_high) == (0, 7, -1)
    clip = torch.tensor([0.5, 2.0], dtype=torch.float64)
    tables = tables_of(plan, Launch(clip=clip, clip_per_tensor=True))
    assert tables.clip.dtype is torch.float32 and tables.clip_stride == 1


# --- layouts -------------------------------------------------------------------------------------


def test_dense_tensors_of_equal_strides_walk_memory() -> None:
    a = torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert plan_layout.walks_memory([a, a.clone(), None], ordered=False)
    assert not plan_layout.walks_memory([a, a.clone()], ordered=True)
    assert not plan_layout.walks_memory([a, a.contiguous()], ordered=False)
    gaps = torch.ones(4, 8)[:, ::2]
    assert not plan_layout.walks_memory([gaps, gaps], ordered=False)
    row = torch.ones(1, 6).as_strided((1, 6), (99, 1))
    assert plan_layout.walks_memory([row, torch.ones(1, 6)], ordered=True)


def test_blocks_merge_dimensions() -> None:
    a, b = torch.ones(2, 3, 4), torch.ones(4, 6).t().view(2, 3, 4)
    words = plan_layout.block([a, b, None, None, None, None])
    assert len(words) == 65
    assert words[0] == 2 and words[1:3] == [6, 4]
    assert words[9:11] == [4, 1] and words[17:19] == [1, 6]
    assert words[57:59] == [4, 1]  # elements are numbered in row-major order


def test_nine_dimensions_that_do_not_merge_need_eager() -> None:
    key = key_of(torch.float32, "none")
    entry = entry_of(key, (2,) * 9)
    assert plan_records.fits(entry, key)
    entry.grad = entry.grad.permute(*range(8, -1, -1))
    assert not plan_records.fits(entry, key)
    with pytest.raises(ValueError, match="dimensions"):
        packed(Bucket(key, entries=[entry], rows=[ROW]))


def test_nine_dimensions_walk_memory_only_where_no_element_has_a_number() -> None:
    """All of equal strides may be walked as they lie; but not where random bits go by number."""
    for mode, fit in (("nearest", True), ("stochastic", False)):
        key = key_of(torch.bfloat16, mode)
        entry = entry_of(key, (2,) * 9)
        for name in ("param", "grad", "exp_avg", "exp_avg_sq"):
            setattr(entry, name, getattr(entry, name).permute(*range(8, -1, -1)))
        assert plan_records.fits(entry, key) == fit


def test_adafactors_matrices_are_read_by_logical_index() -> None:
    """Transposed alike, a matrix and its gradient still have rows and columns of their own."""
    for op, walks in (("adamw", True), ("adafactor", False)):
        entry = entry_of(key_of(torch.float32, "none"), (4, 6))
        for name in ("param", "grad", "exp_avg", "exp_avg_sq"):
            setattr(entry, name, getattr(entry, name).t().contiguous().t())
        rows = [ROW] if op == "adamw" else [AdafactorRow()]
        (record,) = fields(Bucket(key_of(torch.float32, "none", op=op), entries=[entry], rows=rows))
        assert (record["layout"] == 0) == walks


# --- captures ------------------------------------------------------------------------------------


def test_what_a_capture_reads_is_never_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each replay copies it from where it was staged, so no later capture may be staged there."""
    captured: list[torch.Tensor] = []
    monkeypatch.setattr(plan_upload, "_reserve", [])
    monkeypatch.setattr(plan_upload, "_captured", captured)
    monkeypatch.setattr(plan_upload, "capturing", lambda: True)
    plan_upload.reserve_for_capture(3 * plan_upload.STAGING_UNIT + 128)
    hosts = [torch.arange(n) + 100 * n for n in (1, 16, 3)]  # 8, 128 and 24 bytes
    for host in hosts:
        target = torch.zeros_like(host)
        plan_upload.upload_(target, host)
        assert torch.equal(target, host)
    for staged, host in zip(captured, hosts, strict=True):
        assert torch.equal(staged.view(torch.int64), host)
        assert staged.data_ptr() % plan_upload.STAGING_UNIT == captured[0].data_ptr() % 64
    with pytest.raises(RuntimeError, match="no pinned memory"):
        plan_upload.upload_(torch.zeros(100), torch.zeros(100))


# --- streams -------------------------------------------------------------------------------------


def test_tables_are_told_of_the_stream_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that this machine need not have: its plan is one of the CPU."""
    cuda, told = torch.device("cuda", 1), []
    streams = [SimpleNamespace(cuda_stream=address) for address in (64, 128)]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[device == cuda])
    monkeypatch.setattr(plan_upload, "constant", lambda value, device: torch.full((1,), value))
    monkeypatch.setattr(
        plan_upload, "record_stream", lambda t, stream: told.append((t.data_ptr(), stream))
    )
    key = key_of(torch.float32, "none")
    plan = packed(Bucket(key, entries=[entry_of(key, (5,))], rows=[ROW]))
    tables_of(plan)
    plan.key = key._replace(device=cuda)
    tables_of(plan)
    assert not told  # of one stream alone the allocator knows
    streams[1] = SimpleNamespace(cuda_stream=256)
    tables = tables_of(plan)
    assert (tables.records.data_ptr(), streams[1]) in told
