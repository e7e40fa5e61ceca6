"""Calls of every CPU kernel, for cpu_replay.py to repeat: `write`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from cpu_recording import Recording
from entries import DTYPES, STATE_DTYPES, VARIANTS, bucket_of, copied, entry_of, key_of

from fused_optim.backends.interface import Bucket, BucketKey, Launch, TensorEntry
from fused_optim.distributed.geometry import Shard
from fused_optim.ops import FAMILIES, SCALE_PARAMETER, AdafactorRow
from fused_optim.precision import extra_state

STAGES = ("adafactor_statistics", "adafactor_finalise_", "adafactor_update_sums")
STAGES += ("adafactor_apply_",)


def transposed(entry: TensorEntry) -> TensorEntry:
    """Return an entry whose parameter and gradient lie in other orders."""
    return copied(entry, param=entry.param.t().contiguous().t(), grad=entry.grad.clone())


def elementwise_buckets(more: int) -> Iterator[tuple[str, Bucket]]:
    """Yield every mode of every update, in sizes that end in the middle of vectors and chunks."""
    updates = (("adamw", False), ("adamw", True), ("lion", False))
    for (op, amsgrad), (dtype, mode) in itertools.product(updates, VARIANTS):
        key = key_of(dtype, mode, amsgrad, op)
        entries = [
            entry_of(key, (300 + number,), grad=grad, state=state, number=number, row=number % 3)
            for number, (grad, state) in enumerate(itertools.product(DTYPES, STATE_DTYPES))
        ]
        entries.append(transposed(entry_of(key, (7, 30), state=torch.bfloat16, number=20)))
        entries.append(entry_of(key, (more,), grad=torch.bfloat16, state=torch.bfloat16, number=21))
        yield f"{mode} {dtype}{' amsgrad' * amsgrad}", bucket_of(key, entries)
        if op == "adamw":
            sizes = enumerate((1, 300, 256 * 33, more))
            packed = [entry_of(key, (n,), state=torch.uint8, number=i) for i, n in sizes]
            yield f"8 bits {mode} {dtype}{' amsgrad' * amsgrad}", bucket_of(key, packed)


def adafactor_entry(
    key: BucketKey,
    shape: tuple[int, ...],
    grad: torch.dtype,
    state: torch.dtype | None,
    number: int,
) -> TensorEntry:
    entry = TensorEntry(torch.randn(shape).to(key.dtype), torch.randn(shape).to(grad), 0, number)
    extra = extra_state(key.mode, key.dtype)
    entry.extra = torch.zeros(shape, dtype=extra[1]) if extra else None
    entry.exp_avg = torch.randn(shape).to(state) if state else None
    entry.exp_avg_sq = torch.rand(shape[:-1] if len(shape) > 1 else shape)
    entry.max_exp_avg_sq = torch.rand(shape[:-2] + shape[-1:]) if len(shape) > 1 else None
    entry.rms = torch.zeros(())
    return entry


SMALL = ((301,), (7, 45), (130, 300), (40, 3, 3), (9, 20, 20), (1, 200), (40, 3))
LARGE = ((600, 300), (1, 140_000), (150_001,), (30_000, 3, 3), (3, 50_000))
"""Shapes whose stages one thread takes, and shapes for all threads."""


def adafactor_buckets() -> Iterator[tuple[str, Bucket]]:
    for number, (dtype, mode) in enumerate(VARIANTS):
        key = BucketKey("adafactor", torch.device("cpu"), dtype, mode, False, False)
        shapes = SMALL + LARGE[number % 5 :: 5]
        state = (None, *STATE_DTYPES)[number % 4]
        entries = [
            adafactor_entry(key, shape, DTYPES[i % 4], state, i) for i, shape in enumerate(shapes)
        ]
        entries[1] = transposed(entries[1])
        whole = Shard((80, 300), (40, 300), (40, 0), ((0,), ()))
        entries.append(adafactor_entry(key, whole.shape, torch.float32, state, 30))
        if number % 2:  # the sums of a shard are exchanged between the ops
            entries[-1].shard = whole
        flags = SCALE_PARAMETER * (number % 3 > 0)
        row = AdafactorRow(b2=0.9, omb2=0.1, b1=0.9, omb1=0.1, flags=flags)
        yield f"{mode} {dtype}", Bucket(key, entries, [row])


def write(path: Path, cpu: ModuleType, *, more: int = 8192 + 100) -> None:
    """Run the ops of the `cpu` backend and write their calls.

    Args:
        path: of the file.
        cpu: the backend's module.
        more: elements of the largest elementwise tensors.
    """
    torch.manual_seed(0)
    launch = Launch(seed=0x123456789ABCDEF0, sums_wanted=True, grad_scale=torch.tensor(2.0))
    with open(path, "wb") as file:
        ops = Recording(cpu, file)
        for name, bucket in elementwise_buckets(more):
            (update,) = FAMILIES[bucket.key.op].updates
            clip = torch.rand(len(bucket.entries)) + 0.5
            clipped = Launch(launch.grad_scale, clip=clip, clip_per_tensor=True, seed=launch.seed)
            ops.run(("grad_square_sums", update), bucket, clipped, name)
        for number, (name, bucket) in enumerate(adafactor_buckets()):
            ops.run(STAGES, bucket, launch, name)
            if number % 3 == 0:  # a visit sums for itself
                ops.run(STAGES, bucket, Launch(seed=7, sums_wanted=False), f"{name}, no sums")
