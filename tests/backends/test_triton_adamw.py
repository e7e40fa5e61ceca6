"""The Triton AdamW kernel against the float32 reference, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from prepared import OnBuckets
from stored import bits
from triton_cases import (
    DTYPES,
    ROWS,
    STATE_DTYPES,
    VARIANTS,
    adamw_entry,
    adamw_reference,
    assert_stored,
    assert_unchanged,
    copied,
    key_of,
    tensors_of,
)

from fused_optim.backends.interface import Bucket, Launch

triton = pytest.importorskip("triton")

from fused_optim.triton_kernels import elementwise  # noqa: E402

from fused_optim import triton_kernels  # noqa: E402

kernels = OnBuckets(triton_kernels)

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="hands CPU tensors to kernels, which is the interpreter's"
)
SEED = 0x123456789ABCDEF0


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make full chunks, which take vectors, cheap to run. Their size changes no result."""
    monkeypatch.setattr(elementwise, "CHUNK_SIZE", 1024)
    monkeypatch.setattr(elementwise, "TAIL_SIZES", dict.fromkeys((2, 3), 1024))


def step_and_check(bucket: Bucket, launch: Launch, clips: list[float] | None = None) -> None:
    clips = clips or [None] * len(bucket.entries)
    wanted = [
        adamw_reference(bucket, copied(entry), launch, clip)
        for entry, clip in zip(bucket.entries, clips, strict=True)
    ]
    kernels.adamw_(bucket, launch)
    for index, entry in enumerate(bucket.entries):
        assert_stored(entry, wanted[index], f"entry {index}")


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(("dtype", "mode"), VARIANTS)
def test_every_kernel_in_every_storage(dtype: torch.dtype, mode: str, amsgrad: bool) -> None:
    # 12 combinations of storage in one launch: the tags are looked up for each tensor.
    key = key_of(dtype, mode, amsgrad)
    storages = [(grad, state) for grad in DTYPES for state in STATE_DTYPES]
    entries = [
        adamw_entry(key, (9,), grad=grad, state=state, number=i, row=i % 3)
        for i, (grad, state) in enumerate(storages)
    ]
    entries.append(adamw_entry(key, (1037,), number=90, state=torch.bfloat16))
    step_and_check(Bucket(key, entries=entries, rows=list(ROWS)), Launch(seed=SEED))


@pytest.mark.parametrize(("dtype", "mode"), [(torch.float32, "none"), (torch.bfloat16, "split")])
@pytest.mark.parametrize("grad", DTYPES)
@pytest.mark.parametrize("state", STATE_DTYPES)
def test_full_chunks_in_every_storage(dtype, mode, grad, state) -> None:
    key = key_of(dtype, mode)
    entries = [adamw_entry(key, (1024,), grad=grad, state=state, number=3, row=1)]
    step_and_check(Bucket(key, entries=entries, rows=list(ROWS)), Launch(seed=1))


def views(shape: tuple[int, ...]) -> dict:
    """Ways to lay out a tensor of ``shape``, each a function of a contiguous one."""

    def unaligned(t: torch.Tensor) -> torch.Tensor:
        return torch.cat([t.reshape(-1)[:1], t.reshape(-1)])[1:].view(shape)

    def sliced(t: torch.Tensor) -> torch.Tensor:
        return torch.stack([t, t + 1], -1)[..., 0]

    def permuted(t: torch.Tensor) -> torch.Tensor:
        return t.movedim(0, -1).contiguous().movedim(-1, 0)

    return {"unaligned": unaligned, "sliced": sliced, "permuted": permuted}


@pytest.mark.parametrize(
    ("dtype", "mode", "state"),
    [
        (torch.float32, "none", torch.float32),
        (torch.bfloat16, "stochastic", torch.bfloat16),
        (torch.float16, "master", torch.float16),
        (torch.bfloat16, "kahan", torch.bfloat16),
    ],
)
def test_layouts_change_nothing(dtype: torch.dtype, mode: str, state: torch.dtype) -> None:
    shape = (6, 5, 7)
    key = key_of(dtype, mode)
    bucket = Bucket(key, entries=[], rows=list(ROWS))
    number = 0
    for view in views(shape).values():
        for field in (("grad",), ("param",), ("param", "grad", "exp_avg", "exp_avg_sq", "extra")):
            entry = adamw_entry(key, shape, grad=dtype, state=state, number=number, row=number % 2)
            for name in field:
                if getattr(entry, name) is not None:
                    setattr(entry, name, view(getattr(entry, name)))
            bucket.entries.append(entry)
            number += 1
    expanded = adamw_entry(key, shape, grad=dtype, state=state, number=number)
    expanded.grad = expanded.grad[:1, :, :1].expand(shape)
    bucket.entries.append(expanded)
    wanted = [adamw_reference(bucket, copied(e), Launch(seed=5)) for e in bucket.entries]
    grads = [entry.grad.clone() for entry in bucket.entries]
    kernels.adamw_(bucket, Launch(seed=5))
    for index, (entry, grad) in enumerate(zip(bucket.entries, grads, strict=True)):
        assert_stored(entry, wanted[index], f"entry {index}")
        assert torch.equal(entry.grad, grad)


@pytest.mark.parametrize("shape", [(), (1,), (3, 0), (2, 3, 4, 2, 3), (1, 7, 1), (8, 2, 2, 3)])
def test_shapes(shape: tuple[int, ...]) -> None:
    key = key_of(torch.float32, "none")
    entry = adamw_entry(key, shape)
    if len(shape) == 4:
        entry.param = entry.param.contiguous(memory_format=torch.channels_last)
        entry.exp_avg = entry.exp_avg.contiguous(memory_format=torch.channels_last)
    step_and_check(Bucket(key, entries=[entry], rows=list(ROWS)), Launch())


def test_empty_tensors_first_in_the_middle_and_last() -> None:
    key = key_of(torch.bfloat16, "split")
    sizes = (0, 0, 9, 0, 3, 0)
    entries = [adamw_entry(key, (size,), number=i) for i, size in enumerate(sizes)]
    step_and_check(Bucket(key, entries=entries, rows=list(ROWS)), Launch())
    step_and_check(Bucket(key, entries=entries[:2], rows=list(ROWS)), Launch())


def test_offsets_beyond_32_bits() -> None:
    """Of a chunk and of a stride. Memory that nobody touches costs nothing."""
    key, count = key_of(torch.bfloat16, "nearest"), 2**31 + 9
    entry = adamw_entry(key, (9,), grad=torch.bfloat16, state=torch.bfloat16, row=1)
    far = copied(entry)
    for field, tensor in tensors_of(entry).items():
        room = torch.empty(count, dtype=tensor.dtype)
        room[-9:] = tensor
        setattr(far, field, room)
    strided = copied(entry, grad=torch.empty(2 * count, dtype=torch.bfloat16)[:: count // 4])
    strided.grad.copy_(entry.grad)
    bucket = Bucket(key, entries=[far, strided], rows=list(ROWS))
    last = torch.tensor([[0, (count - 1) // elementwise.CHUNK_SIZE], [1, 0]], dtype=torch.int32)
    kernels.plan(bucket)._map = lambda name, counts: last
    wanted = adamw_reference(bucket, copied(strided), Launch(seed=1))
    kernels.adamw_(bucket, Launch(seed=1))
    assert_stored(strided, {"param": wanted["param"]}, "strided")
    assert (bits(far.param[-9:]) == wanted["param"]).all()  # nothing of it is drawn


def test_neighbours_in_memory_are_left_alone() -> None:
    key = key_of(torch.float32, "none")
    entry = adamw_entry(key, (13,))
    room = torch.full((33,), math.pi)
    room[4:17] = entry.param
    entry.param = room[4:17]
    kernels.adamw_(Bucket(key, entries=[entry], rows=list(ROWS)), Launch())
    assert (room[:4] == math.pi).all() and (room[17:] == math.pi).all()


def test_scaled_and_clipped_gradients() -> None:
    key = key_of(torch.bfloat16, "split")
    scale, clips = torch.tensor(1024.0), [0.3, 0.7, 1.0]
    for per_tensor in (False, True):
        entries = [adamw_entry(key, (21,), number=i, row=i) for i in range(3)]
        clip = torch.tensor(clips) if per_tensor else torch.tensor(clips[0])
        launch = Launch(grad_scale=scale, clip=clip, clip_per_tensor=per_tensor)
        each = [x.item() for x in (clip if per_tensor else clip.expand(3))]
        step_and_check(Bucket(key, entries=entries, rows=list(ROWS)), launch, each)


@pytest.mark.parametrize("found_inf", [2.0, 1.0, 0.0])
def test_found_inf_leaves_everything_untouched(found_inf: float) -> None:
    key = key_of(torch.bfloat16, "kahan", amsgrad=True)
    entries = [adamw_entry(key, (1030,), state=torch.bfloat16, number=i) for i in range(2)]
    before = [tensors_of(copied(entry)) for entry in entries]
    bucket = Bucket(key, entries=entries, rows=list(ROWS))
    kernels.adamw_(bucket, Launch(found_inf=torch.tensor(found_inf)))
    if found_inf:
        for entry, tensors in zip(entries, before, strict=True):
            assert_unchanged(entry, tensors)
    else:
        assert not torch.equal(entries[0].param, before[0]["param"])


@pytest.mark.parametrize("mode", ["stochastic", "split", "kahan", "master", "nearest"])
def test_extreme_values(mode: str) -> None:
    key = key_of(torch.bfloat16, mode, amsgrad=True)
    values = [0.0, -0.0, math.inf, -math.inf, math.nan, 3e38, -3e38, 1e-40, 65504.0, 1e-45]
    entry = adamw_entry(key, (len(values) ** 2,), state=torch.bfloat16)
    entry.param = torch.tensor(values).repeat(len(values)).to(torch.bfloat16)
    entry.grad = torch.tensor(values).repeat_interleave(len(values))
    entry.max_exp_avg_sq[3] = math.nan
    if mode == "master":
        entry.extra = entry.param.float()
    step_and_check(Bucket(key, entries=[entry], rows=list(ROWS)), Launch(seed=3))


def test_an_update_of_zero_changes_no_bit() -> None:
    patterns = torch.arange(-(1 << 15), 1 << 15, 37, dtype=torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        param = patterns.view(dtype)
        param = param[~param.isnan()]
        for mode in ("nearest", "stochastic", "kahan", "master"):
            key = key_of(dtype, mode)
            entry = adamw_entry(key, param.shape)
            entry.param, entry.grad = param.clone(), torch.zeros(param.shape)
            entry.exp_avg.zero_()
            if entry.extra is not None:
                entry.extra = param.float() if mode == "master" else entry.extra.zero_()
            rows = [ROWS[0].__class__(step_size=0.0)]
            kernels.adamw_(Bucket(key, entries=[entry], rows=rows), Launch())
            same = entry.param.view(torch.int16) == param.view(torch.int16)
            assert same.all(), (dtype, mode, param[~same][:5])


def test_cpu_tensors_without_the_interpreter_get_our_own_error() -> None:
    import subprocess
    import sys

    code = """
import torch
from fused_optim import AdamW
p = torch.nn.Parameter(torch.zeros(4))
p.grad = torch.zeros(4)
try:
    AdamW([p]).step()
except RuntimeError as error:
    print(error)
"""
    env = {k: v for k, v in __import__("os").environ.items() if k != "TRITON_INTERPRET"}
    env["FUSED_OPTIM_TEST_BACKEND"] = "triton"
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "TRITON_INTERPRET=1" in run.stdout, run.stderr
