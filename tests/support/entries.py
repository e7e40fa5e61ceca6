"""Buckets for the ops of a kernel backend, made without an optimizer, and their references."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from oracle import Random
from reference_fp32 import MODES, UPDATES, stored_step
from stored import EXTRA, bits
from tolerances import assert_same_bits, dtype_name

from fused_optim import precision
from fused_optim.backends.interface import Bucket, BucketKey, Launch, TensorEntry
from fused_optim.ops import AdamWRow, LionRow
from fused_optim.precision import eight_bit

VARIANTS = [(getattr(torch, name), mode) for name, modes in MODES.items() for mode in modes]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROW = AdamWRow(omb1=0.1, b2=0.999, omb2=0.001, step_size=3e-3, eps=1e-8, decay_after=0.9999, step=7)
ROWS = [
    ROW,
    dataclasses.replace(ROW, grad_mul=-1.0, l2=0.03, denom_scale=1.5, decay_before=0.99, step=8),
    dataclasses.replace(ROW, clip_value=0.05, eps=1e-3, step=2**32 - 1),
]
_LION = LionRow(b1=0.9, omb1=0.1, b2=0.99, omb2=0.01, step_size=3e-3, step=7)
ROWS_OF = {
    "adamw": ROWS,
    "lion": [
        _LION,
        dataclasses.replace(_LION, grad_mul=-1.0, decay_before=0.99, step=8),
        dataclasses.replace(_LION, clip_value=0.05, b1=0.0, omb1=1.0, step=2**32 - 1),
    ],
}
"""Rows of every elementwise update, each with its options on and off."""


def spread(shape: Sequence[int], low: float, high: float) -> torch.Tensor:
    """Return random numbers of many magnitudes."""
    return torch.randn(shape) * 10.0 ** torch.empty(shape).uniform_(low, high)


def key_of(dtype: torch.dtype, mode: str, amsgrad: bool = False, op: str = "adamw") -> BucketKey:
    return BucketKey(op, torch.device("cpu"), dtype, mode, amsgrad, False)


def bucket_of(key: BucketKey, entries: Sequence[TensorEntry], rows: Sequence | None = None):
    """Return a bucket with the rows of its update."""
    return Bucket(key, entries=list(entries), rows=list(rows or ROWS_OF[key.op]))


def entry_of(
    key: BucketKey,
    shape: Sequence[int],
    *,
    grad: torch.dtype = torch.float32,
    state: torch.dtype = torch.float32,
    number: int = 0,
    row: int = 0,
) -> TensorEntry:
    """Return an entry with a state of some age; every third master or remainder is stale."""
    first, second = precision.resolve_state_dtype(state, key.dtype)
    v = spread(shape, -4, 1).square()
    moments = {
        "exp_avg": spread(shape, -5, 0),
        "exp_avg_sq": v,
        "max_exp_avg_sq": v * spread(shape, -0.5, 0.5).abs(),
    }
    if first is torch.uint8:
        moments = records_of(moments)
    moments = {
        name: moment.to(first if name == "exp_avg" else second) for name, moment in moments.items()
    }
    entry = TensorEntry(
        spread(shape, -3, 1).to(key.dtype),
        spread(shape, -5, 1).to(grad),
        row,
        number,
        **{name: moments[name] for name in moments_of(key)},
    )
    entry.extra = extra_of(key, entry.param)
    return entry


def records_of(moments: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return moments in 8 bits."""
    blocks = {name: eight_bit.in_blocks(moment) for name, moment in moments.items()}
    half = torch.full_like(blocks["exp_avg"], 0x8000, dtype=torch.int32)
    found = {
        name: eight_bit.encode_second(block, half)
        for name, block in blocks.items()
        if name != "exp_avg"
    }
    second = eight_bit.decode_second(found["exp_avg_sq"])
    found["exp_avg"] = eight_bit.encode_first(blocks["exp_avg"], second, half)
    return {name: records.reshape(-1) for name, records in found.items()}


def moments_of(key: BucketKey) -> list[str]:
    """Return the fields of the moments that a bucket's update has."""
    _, names, _ = UPDATES[key.op]
    return [name for name in names if key.amsgrad or name != "max_exp_avg_sq"]


def extra_of(key: BucketKey, param: torch.Tensor) -> torch.Tensor | None:
    shape = param.shape
    if key.mode == "split":
        return torch.randint(-(2**15), 2**15, shape).to(torch.int16)
    if key.mode == "master":
        return param.float() + (torch.rand(shape) < 0.3)
    if key.mode == "kahan":
        return (param.float() * spread(shape, -4, -1)).to(key.dtype)
    return None


def copied(entry: TensorEntry, **changed) -> TensorEntry:
    """Return an entry of its own tensors; clones keep dense strides."""
    fields = {f.name: getattr(entry, f.name) for f in dataclasses.fields(entry)}
    fields = {k: v.clone() if torch.is_tensor(v) else v for k, v in fields.items()}
    return TensorEntry(**{**fields, **changed})


def tensors_of(entry: TensorEntry) -> dict[str, torch.Tensor]:
    fields = {f.name: getattr(entry, f.name) for f in dataclasses.fields(entry)}
    return {k: v for k, v in fields.items() if torch.is_tensor(v)}


def reference_of(
    bucket: Bucket, entry: TensorEntry, launch: Launch, clip: float | None = None
) -> dict[str, np.ndarray]:
    """Return what an entry's tensors must hold after its update, by field."""
    mode = bucket.key.mode
    state = {name: bits(getattr(entry, name)) for name in moments_of(bucket.key)}
    if entry.extra is not None:
        state[EXTRA[mode]] = bits(entry.extra)
    row_type, _, _ = UPDATES[bucket.key.op]
    p, new = stored_step(
        bucket.key.op,
        bits(entry.param),
        bits(entry.grad.float()),
        state,
        row_type(**dataclasses.asdict(bucket.rows[entry.row])),
        dtype=dtype_name(bucket.key.dtype),
        mode=mode,
        state_dtype=dtype_name(entry.exp_avg.dtype),
        amsgrad=bucket.key.amsgrad,
        random=Random(seed=launch.seed, number=entry.number),
        grad_scale=None if launch.grad_scale is None else launch.grad_scale.item(),
        clip_coef=clip,
    )
    return {"param": p, **{"extra" if k == EXTRA.get(mode) else k: v for k, v in new.items()}}


def assert_stored(entry: TensorEntry, expected: dict[str, np.ndarray], what: str) -> None:
    """Hold an entry's tensors to bits; NaNs of float32 may have any payload."""
    for field, value in expected.items():
        actual = bits(getattr(entry, field))
        if actual.dtype == np.float32:
            assert_same_bits(actual, value, f"{what} {field}")
        else:
            differ = int((actual != np.asarray(value)).sum())
            assert differ == 0, f"{what} {field}: {differ} of {actual.size} differ"


def assert_unchanged(entry: TensorEntry, before: dict[str, torch.Tensor]) -> None:
    for field, tensor in before.items():
        assert_stored(entry, {field: bits(tensor)}, "untouched")
