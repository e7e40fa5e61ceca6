"""The CUDA AdamW kernel, run on the CPU, against the float32 reference: every bit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import host_module
import numpy as np
import pytest
import torch
from oracle import Random
from reference_fp32 import MODES, Row, adamw_step
from reference_storage import State
from tolerances import assert_same_bits, dtype_name

from fused_optim import precision
from fused_optim.backends.interface import Bucket, BucketKey, Launch, TensorEntry
from fused_optim.ops import AdamWRow

SIZES = (0, 1, 7, 8, 1000, 8192, 8192 + 4096 + 5)
VARIANTS = [(getattr(torch, name), mode) for name, modes in MODES.items() for mode in modes]
ROW = AdamWRow(omb1=0.1, b2=0.999, omb2=0.001, step_size=3e-3, eps=1e-8, decay_after=0.9999, step=7)
ROWS = (
    ROW,
    dataclasses.replace(ROW, grad_mul=-1.0, l2=0.03, denom_scale=1.5, decay_before=0.99, step=8),
    dataclasses.replace(ROW, clip_value=0.05, eps=1e-3, step=2**32 - 1),
)
BITS = {torch.bfloat16: np.uint16, torch.float16: np.uint16}


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if tensor.dtype in BITS:
        return np.asarray(tensor.view(torch.int16).numpy()).view(np.uint16)
    return np.asarray(tensor.numpy())


def spread(shape: Sequence[int], low: float, high: float) -> torch.Tensor:
    return torch.randn(shape) * 10 ** torch.empty(shape).uniform_(low, high)


def entry_of(
    key: BucketKey,
    shape: Sequence[int],
    *,
    grad_dtype: torch.dtype = torch.float32,
    state_dtype: torch.dtype = torch.float32,
    number: int = 0,
    row: int = 0,
) -> TensorEntry:
    first, second = precision.resolve_state_dtype(state_dtype, key.dtype)
    v = spread(shape, -4, 1).square().to(second)
    entry = TensorEntry(
        param=spread(shape, -3, 1).to(key.dtype),
        grad=spread(shape, -5, 1).to(grad_dtype),
        row=row,
        number=number,
        exp_avg=spread(shape, -5, 0).to(first),
        exp_avg_sq=v,
        max_exp_avg_sq=(v * spread(shape, -0.5, 0.5).abs()).to(second) if key.amsgrad else None,
    )
    extra = precision.extra_state(key.mode, key.dtype)
    if extra is not None:
        entry.extra = torch.zeros(shape, dtype=extra[1])
        if extra[0] == "remainder":
            entry.extra = torch.randint(-(2**15), 2**15, shape).to(torch.int16)
        elif extra[0] == "master":  # every third one is stale
            entry.extra = entry.param.float()
            entry.extra.view(-1)[::3] += 1
        else:
            entry.extra = (entry.param.float() * spread(shape, -4, -1)).to(key.dtype)
    return entry


def bucket_of(dtype: torch.dtype, mode: str, amsgrad: bool, rows=ROWS) -> Bucket:
    key = BucketKey("adamw", torch.device("cpu"), dtype, mode, amsgrad, False)
    return Bucket(key, rows=list(rows))


def expected(bucket: Bucket, entry: TensorEntry, launch: Launch, clip: float | None) -> State:
    names = {"master": "master", "split": "remainder", "kahan": "compensation"}
    state = {
        name: numpy_of(getattr(entry, name))
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        if getattr(entry, name) is not None
    }
    if entry.extra is not None:
        state[names[bucket.key.mode]] = numpy_of(entry.extra)
    grad = entry.grad.float().contiguous().numpy()
    p, new = adamw_step(
        numpy_of(entry.param),
        grad,
        state,
        Row(**dataclasses.asdict(bucket.rows[entry.row])),
        dtype=dtype_name(bucket.key.dtype),
        mode=bucket.key.mode,
        state_dtype=dtype_name(entry.exp_avg.dtype),
        amsgrad=bucket.key.amsgrad,
        random=Random(seed=launch.seed, number=entry.number),
        grad_scale=None if launch.grad_scale is None else launch.grad_scale.item(),
        clip_coef=clip,
    )
    return {"param": p, **{("extra" if k in names.values() else k): v for k, v in new.items()}}


def copied(entry: TensorEntry) -> TensorEntry:
    fields = {f.name: getattr(entry, f.name) for f in dataclasses.fields(entry)}
    return TensorEntry(**{k: v.clone() if torch.is_tensor(v) else v for k, v in fields.items()})


def assert_bits(actual: torch.Tensor, wanted: np.ndarray, what: str) -> None:
    got = numpy_of(actual)
    if got.dtype == np.float32:
        assert_same_bits(got, wanted, what)
    else:
        wrong = np.flatnonzero(got.ravel() != np.asarray(wanted).view(got.dtype).ravel())
        assert wrong.size == 0, f"{what}: {wrong.size} differ, first at {wrong[:5]}"


def step_and_check(bucket: Bucket, launch: Launch, clips: Sequence[float] | None = None) -> None:
    wanted = [
        expected(bucket, copied(entry), launch, None if clips is None else clips[i])
        for i, entry in enumerate(bucket.entries)
    ]
    grads = [entry.grad.clone() for entry in bucket.entries]
    host_module.kernels().adamw_(bucket, launch)
    for i, (entry, values, grad) in enumerate(zip(bucket.entries, wanted, grads, strict=True)):
        assert_bits(
            entry.grad, numpy_of(grad), "gradient"
        ) if grad.dtype in BITS else assert_same_bits(entry.grad, grad)
        for name, value in values.items():
            assert_bits(getattr(entry, name), value, f"{bucket.key} entry {i} {name}")


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(("dtype", "mode"), VARIANTS)
def test_every_kernel(dtype: torch.dtype, mode: str, amsgrad: bool) -> None:
    bucket = bucket_of(dtype, mode, amsgrad)
    grads = (dtype, torch.float32, torch.bfloat16, torch.float16, torch.float64)
    states = (torch.float32, torch.bfloat16, torch.float16)
    for number, size in enumerate(SIZES):
        bucket.entries.append(
            entry_of(
                bucket.key,
                (size,),
                grad_dtype=grads[number % 5],
                state_dtype=states[number % 3],
                number=number,
                row=number % 3,
            )
        )
    step_and_check(bucket, Launch(seed=0x123456789ABCDEF0))


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "grad_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64]
)
@pytest.mark.parametrize(("dtype", "mode"), [(torch.float32, "none"), (torch.bfloat16, "split")])
def test_dtype_tags(dtype, mode, grad_dtype, state_dtype) -> None:
    bucket = bucket_of(dtype, mode, True)
    bucket.entries.append(
        entry_of(bucket.key, (2053,), grad_dtype=grad_dtype, state_dtype=state_dtype)
    )
    step_and_check(bucket, Launch(seed=3))


@pytest.mark.parametrize(("dtype", "mode"), VARIANTS)
def test_layouts(dtype: torch.dtype, mode: str) -> None:
    """Transposed, expanded, sliced and unaligned tensors give what contiguous ones do."""
    bucket = bucket_of(dtype, mode, False)
    for number in range(5):
        entry = entry_of(bucket.key, (24, 33), number=number, state_dtype=torch.bfloat16)
        if number == 0:
            entry.grad = spread((33, 24), -3, 1).t()
        elif number == 1:
            entry.grad = spread((24, 1), -3, 1).expand(24, 33)
        elif number == 2:
            entry.param = spread((24, 66), -3, 1).to(dtype)[:, ::2]
        elif number == 3:
            entry.param = spread((24 * 33 + 1,), -3, 1).to(dtype)[1:].view(24, 33)
        else:
            entry.grad = spread((33, 24), -3, 1).t()
            entry.param = entry.param.t().contiguous().t()
            entry.exp_avg = entry.exp_avg.t().contiguous().t()
        bucket.entries.append(entry)
    step_and_check(bucket, Launch(seed=9))


@pytest.mark.parametrize(("dtype", "mode"), VARIANTS)
def test_special_values(dtype: torch.dtype, mode: str) -> None:
    """Infinities, NaNs, zeros of both signs and subnormals, in every tensor."""
    values = torch.tensor(
        [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -1e-45, 1.0, 3e38, 65504]
    )
    grid = torch.cartesian_prod(values, values, values)
    bucket = bucket_of(dtype, mode, True, rows=[dataclasses.replace(ROW, clip_value=1e3)])
    entry = entry_of(bucket.key, (len(grid),))
    entry.param.copy_(grid[:, 0])
    entry.grad.copy_(grid[:, 1])
    entry.exp_avg.copy_(grid[:, 2])
    bucket.entries.append(entry)
    step_and_check(bucket, Launch(seed=1))


@pytest.mark.parametrize("per_tensor", [False, True])
def test_scale_and_clip(per_tensor: bool) -> None:
    bucket = bucket_of(torch.bfloat16, "split", False)
    bucket.entries += [entry_of(bucket.key, (900,), row=i) for i in range(3)]
    clips = [0.3, 0.5, 0.7] if per_tensor else [0.3] * 3
    clip = torch.tensor(clips if per_tensor else clips[0])
    scale = torch.tensor(1024.0 * 3)
    step_and_check(bucket, Launch(grad_scale=scale, clip=clip, clip_per_tensor=per_tensor), clips)


def test_found_inf_writes_nothing() -> None:
    bucket = bucket_of(torch.bfloat16, "kahan", True)
    bucket.entries.append(entry_of(bucket.key, (900,)))
    before = copied(bucket.entries[0])
    host_module.kernels().adamw_(bucket, Launch(found_inf=torch.ones(())))
    for field in dataclasses.fields(before):
        value = getattr(before, field.name)
        if torch.is_tensor(value):
            assert torch.equal(getattr(bucket.entries[0], field.name), value)


def test_an_update_of_zero_keeps_every_bit() -> None:
    for dtype, mode in VARIANTS:
        bucket = bucket_of(dtype, mode, False, rows=[AdamWRow(step_size=0.0)])
        entry = entry_of(bucket.key, (4096,))
        entry.param[:2] = torch.tensor([0.0, -0.0])
        for name in ("grad", "exp_avg", "exp_avg_sq"):
            getattr(entry, name).zero_()
        before = entry.param.clone()
        bucket.entries.append(entry)
        host_module.kernels().adamw_(bucket, Launch())
        assert_bits(entry.param, numpy_of(before), f"{dtype} {mode}")


# (dtype, mode, grad dtype, state dtype): bytes per parameter, README's figures.
TRAFFIC = {
    (torch.float32, "none", torch.float32, torch.float32): 28,
    (torch.bfloat16, "nearest", torch.bfloat16, torch.float32): 22,
    (torch.bfloat16, "split", torch.bfloat16, torch.float32): 26,
    (torch.bfloat16, "split", torch.bfloat16, torch.bfloat16): 18,
    (torch.bfloat16, "stochastic", torch.bfloat16, torch.bfloat16): 14,
}


@pytest.mark.parametrize("variant", TRAFFIC)
def test_traffic_and_launches(variant) -> None:
    dtype, mode, grad_dtype, state_dtype = variant
    bucket = bucket_of(dtype, mode, False)
    extension = host_module.backend()._C
    for number, size in enumerate((64, 8192, 3 * 8192 + 8)):
        bucket.entries.append(
            entry_of(
                bucket.key, (size,), grad_dtype=grad_dtype, state_dtype=state_dtype, row=number
            )
        )
    extension.take_counters()
    host_module.kernels().adamw_(bucket, Launch())
    counted = extension.take_counters()
    elements = sum(entry.param.numel() for entry in bucket.entries)
    assert counted["launches"] == 1
    assert counted["bytes_loaded"] + counted["bytes_stored"] == TRAFFIC[variant] * elements


def test_error_names_the_op() -> None:
    bucket = bucket_of(torch.float32, "none", False)
    bucket.key = bucket.key._replace(mode="split")
    bucket.entries.append(entry_of(bucket.key._replace(mode="none"), (8,)))
    with pytest.raises(ValueError, match="adamw_: no kernel for dtype 0 in mode 4"):
        host_module.kernels().adamw_(bucket, Launch())
