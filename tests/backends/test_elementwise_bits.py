"""Every elementwise update on every backend, against the float32 reference: every bit.

Eager's AdamW alone is left out: torch's square root on a CPU is not always correctly rounded. The
parity tests hold it to the oracle. The ops are called on buckets, so that a fault of a kernel shows
as one.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import BACKENDS, interpreted
from entries import (
    DTYPES,
    ROWS_OF,
    STATE_DTYPES,
    VARIANTS,
    assert_stored,
    assert_unchanged,
    bucket_of,
    copied,
    entry_of,
    key_of,
    moments_of,
    reference_of,
    tensors_of,
)
from prepared import OnBuckets
from reference_fp32 import UPDATES

from fused_optim.backends import eager
from fused_optim.backends.interface import Bucket, Launch
from fused_optim.ops import FAMILIES

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="hands CPU tensors to kernels, which are compiled for a CPU"
)
SEED = 0x123456789ABCDEF0
PAIRS = [(b, name) for b in BACKENDS for name in UPDATES if (b, name) != ("eager", "adamw")]
AMSGRAD = [(b, name, flag) for b, name in PAIRS for flag in (False, True)[: 1 + (name == "adamw")]]


@pytest.fixture
def update(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A backend's op: ``run(bucket, launch)``, the name of its update, and that of the backend."""
    backend, name = request.param[:2]
    if backend == "eager":
        ops: Any = eager
    elif backend == "cpu":
        pytest.importorskip("fused_optim._cpu", reason="there are no CPU kernels")
        from fused_optim.backends import cpu

        ops = OnBuckets(cpu)
    elif backend == "cuda":
        import host_module

        ops = host_module.kernels()
    else:
        pytest.importorskip("triton")
        from fused_optim.triton_kernels import elementwise

        from fused_optim import triton_kernels

        # Full chunks, which take vectors, are then cheap to run. Their size changes no result.
        monkeypatch.setattr(elementwise, "CHUNK_SIZE", 1024)
        monkeypatch.setattr(elementwise, "TAIL_SIZES", dict.fromkeys((1, 2, 3), 1024))
        ops = OnBuckets(triton_kernels)
    (op,) = FAMILIES[name].updates
    amsgrad = len(request.param) > 2 and request.param[2]
    return SimpleNamespace(run=getattr(ops, op), name=name, backend=backend, amsgrad=amsgrad)


each_update = pytest.mark.parametrize(
    "update", PAIRS, ids=lambda pair: "-".join(pair), indirect=True
)
each_variant = pytest.mark.parametrize(
    ("dtype", "mode"), VARIANTS, ids=lambda value: str(value).removeprefix("torch.")
)


def step_and_check(update, bucket: Bucket, launch: Launch, clips: list | None = None) -> None:
    clips = clips or [None] * len(bucket.entries)
    wanted = [
        reference_of(bucket, copied(entry), launch, clip)
        for entry, clip in zip(bucket.entries, clips, strict=True)
    ]
    grads = [entry.grad.clone() for entry in bucket.entries]
    update.run(bucket, launch)
    for index, (entry, grad) in enumerate(zip(bucket.entries, grads, strict=True)):
        if (
            update.backend == "eager"
        ):  # torch keeps the sign of a NaN, which the contract leaves open
            for tensor in (entry.param, *(getattr(entry, name) for name in moments_of(bucket.key))):
                tensor[tensor.isnan()] = math.nan
        assert_stored(entry, wanted[index], f"{bucket.key} entry {index}")
        torch.testing.assert_close(entry.grad, grad, rtol=0, atol=0, equal_nan=True)


def test_every_elementwise_update_has_a_reference() -> None:
    assert set(UPDATES) == {name for name, family in FAMILIES.items() if family.elementwise}
    assert set(ROWS_OF) == set(UPDATES)


@pytest.mark.parametrize(
    "update", AMSGRAD, ids=lambda case: f"{case[0]}-{case[1]}{'-amsgrad' * case[2]}", indirect=True
)
@each_variant
def test_every_kernel_in_every_storage(update, dtype: torch.dtype, mode: str) -> None:
    # 12 combinations of storage in one launch: the tags are looked up for each tensor.
    key = key_of(dtype, mode, update.amsgrad, update.name)
    storages = [(grad, state) for grad in DTYPES for state in STATE_DTYPES]
    entries = [
        entry_of(key, (9,), grad=grad, state=state, number=i, row=i % 3)
        for i, (grad, state) in enumerate(storages)
    ]
    sizes = (0, 1, 7, 8, 1037)
    if not interpreted(update.backend):
        sizes += (8192, 8192 + 4096 + 5)
    for number, size in enumerate(sizes, 90):
        state = STATE_DTYPES[(number + 1) % 3]
        entries.append(entry_of(key, (size,), grad=dtype, state=state, number=number))
    step_and_check(update, bucket_of(key, entries), Launch(seed=SEED))


@each_update
@pytest.mark.parametrize(("dtype", "mode"), [(torch.float32, "none"), (torch.bfloat16, "split")])
@pytest.mark.parametrize("grad", DTYPES)
@pytest.mark.parametrize("state", STATE_DTYPES)
def test_full_chunks_in_every_storage(update, dtype, mode, grad, state) -> None:
    key = key_of(dtype, mode, op=update.name)
    size = 1024 if interpreted(update.backend) else 8192
    entries = [entry_of(key, (size,), grad=grad, state=state, number=3, row=1)]
    step_and_check(update, bucket_of(key, entries), Launch(seed=1))


def unaligned(t: torch.Tensor) -> torch.Tensor:
    return torch.cat([t.reshape(-1)[:1], t.reshape(-1)])[1:].view(t.shape)


def sliced(t: torch.Tensor) -> torch.Tensor:
    return torch.stack([t, t + 1], -1)[..., 0]


def permuted(t: torch.Tensor) -> torch.Tensor:
    return t.movedim(0, -1).contiguous().movedim(-1, 0)


@each_update
@pytest.mark.parametrize(
    ("dtype", "mode", "state"),
    [
        (torch.float32, "none", torch.float32),
        (torch.bfloat16, "stochastic", torch.bfloat16),
        (torch.float16, "master", torch.float16),
        (torch.bfloat16, "kahan", torch.bfloat16),
        (torch.bfloat16, "split", torch.bfloat16),
    ],
)
def test_layouts_change_nothing(update, dtype, mode: str, state: torch.dtype) -> None:
    shape, key = (6, 5, 7), key_of(dtype, mode, op=update.name)
    bucket = bucket_of(key, [])
    for view in (unaligned, sliced, permuted):
        for fields in (("grad",), ("param",), ("param", "grad", "extra", *moments_of(key))):
            number = len(bucket.entries)
            entry = entry_of(key, shape, grad=dtype, state=state, number=number, row=number % 2)
            for name in fields:
                if getattr(entry, name) is not None:
                    setattr(entry, name, view(getattr(entry, name)))
            bucket.entries.append(entry)
    expanded = entry_of(key, shape, grad=dtype, state=state, number=len(bucket.entries))
    expanded.grad = expanded.grad[:1, :, :1].expand(shape)
    bucket.entries.append(expanded)
    step_and_check(update, bucket, Launch(seed=5))


@each_update
@pytest.mark.parametrize("shape", [(), (1,), (3, 0), (2, 3, 4, 2, 3), (1, 7, 1), (8, 2, 2, 3)])
def test_shapes(update, shape: tuple[int, ...]) -> None:
    entry = entry_of(key := key_of(torch.float32, "none", op=update.name), shape)
    if len(shape) == 4:
        entry.param = entry.param.contiguous(memory_format=torch.channels_last)
        entry.exp_avg = entry.exp_avg.contiguous(memory_format=torch.channels_last)
    step_and_check(update, bucket_of(key, [entry]), Launch())


@each_update
def test_empty_tensors_first_in_the_middle_and_last(update) -> None:
    key = key_of(torch.bfloat16, "split", op=update.name)
    entries = [entry_of(key, (size,), number=i) for i, size in enumerate((0, 0, 9, 0, 3, 0))]
    step_and_check(update, bucket_of(key, entries), Launch())
    step_and_check(update, bucket_of(key, entries[:2]), Launch())


@each_update
def test_neighbours_in_memory_are_left_alone(update) -> None:
    entry = entry_of(key := key_of(torch.float32, "none", op=update.name), (13,))
    room = torch.full((33,), math.pi)
    room[4:17] = entry.param
    entry.param = room[4:17]
    update.run(bucket_of(key, [entry]), Launch())
    assert (room[:4] == math.pi).all() and (room[17:] == math.pi).all()


@each_update
@pytest.mark.parametrize("per_tensor", [False, True])
def test_scaled_and_clipped_gradients(update, per_tensor: bool) -> None:
    key = key_of(torch.bfloat16, "split", op=update.name)
    entries = [entry_of(key, (21,), number=i, row=i) for i in range(3)]
    clip = torch.tensor([0.3, 0.7, 1.0]) if per_tensor else torch.tensor(0.3)
    scale = torch.tensor(1024.0 * 3)
    launch = Launch(grad_scale=scale, clip=clip, clip_per_tensor=per_tensor)
    step_and_check(update, bucket_of(key, entries), launch, clip.expand(3).tolist())


@each_update
@pytest.mark.parametrize("found_inf", [2.0, 1.0, 0.0])
def test_found_inf_leaves_everything_untouched(update, found_inf: float) -> None:
    key = key_of(torch.bfloat16, "kahan", update.name == "adamw", update.name)
    entries = [entry_of(key, (1030,), state=torch.bfloat16, number=i) for i in range(2)]
    before = [tensors_of(copied(entry)) for entry in entries]
    update.run(bucket_of(key, entries), Launch(found_inf=torch.tensor(found_inf)))
    if found_inf:
        for entry, tensors in zip(entries, before, strict=True):
            assert_unchanged(entry, tensors)
    else:
        assert not torch.equal(entries[0].param, before[0]["param"])


@each_update
@each_variant
def test_extreme_values(update, dtype: torch.dtype, mode: str) -> None:
    """Infinities, NaNs, zeros of both signs and subnormals, in every tensor."""
    key = key_of(dtype, mode, update.name == "adamw", update.name)
    values = torch.tensor(
        [0.0, -0.0, math.inf, -math.inf, math.nan, 3e38, -3e38, 1e-40, 65504.0, -1e-45, 1.0]
    )
    grid = torch.cartesian_prod(values, values, values)
    entry = entry_of(key, (len(grid),), state=torch.bfloat16)
    entry.param.copy_(grid[:, 0])
    entry.grad.copy_(grid[:, 1])
    entry.exp_avg.copy_(grid[:, 2])
    if update.name == "adamw":
        entry.max_exp_avg_sq[3] = math.nan
    if mode == "master":
        entry.extra = entry.param.float()
    step_and_check(update, bucket_of(key, [entry]), Launch(seed=3))


@each_update
@each_variant
def test_an_update_of_zero_changes_no_bit(update, dtype: torch.dtype, mode: str) -> None:
    param = torch.arange(-(1 << 15), 1 << 15, 37, dtype=torch.int16)
    param = param.view(dtype) if dtype is not torch.float32 else param.view(torch.bfloat16).float()
    param = param[~param.isnan()]
    key = key_of(dtype, mode, op=update.name)
    entry = entry_of(key, param.shape)
    # By a rate of 0, so that the update is -0 where gradients are negative.
    entry.param, entry.grad = param.clone(), torch.linspace(-1.0, 1.0, len(param))
    entry.exp_avg.zero_()
    if entry.extra is not None:
        entry.extra = param.float() if mode == "master" else entry.extra.zero_()
    row = FAMILIES[update.name].row(**{FAMILIES[update.name].rate: 0.0})
    update.run(bucket_of(key, [entry], [row]), Launch())
    assert torch.equal(entry.param.view(torch.uint8), param.view(torch.uint8))


@pytest.mark.parametrize(
    "update",
    [(b, "adamw", flag) for b in ("cpu", "cuda", "triton") for flag in (False, True)],
    ids=lambda case: f"{case[0]}{'-amsgrad' * case[2]}",
    indirect=True,
)
@each_variant
def test_moments_in_8_bits_beside_others(update, dtype: torch.dtype, mode: str) -> None:
    """Whole blocks and parts of one, more than a chunk, and gradients of every dtype."""
    key = key_of(dtype, mode, update.amsgrad)
    entries = [
        entry_of(key, (size,), grad=grad, state="int8", number=number, row=number % 3)
        for number, (size, grad) in enumerate(
            zip((256, 4096 + 256 + 77, 1000, 513), (*DTYPES,), strict=True)
        )
    ]
    entries[0].exp_avg_sq.zero_(), entries[0].exp_avg.zero_()  # as before the first step
    entries[1].grad[300], entries[1].grad[900] = math.nan, math.inf
    entries.append(entry_of(key, (300,), state=torch.bfloat16, number=7))
    step_and_check(update, bucket_of(key, entries), Launch(seed=SEED))
