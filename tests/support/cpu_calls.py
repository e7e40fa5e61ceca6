"""Calls of the CPU kernels, written to a file with the memory before and after each: `write`.

The program of cpu_replay.py runs them again, without Python, under a sanitizer or for another
architecture, and compares every byte.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO
from unittest import mock

import numpy as np
import torch
from entries import (
    DTYPES,
    STATE_DTYPES,
    VARIANTS,
    bucket_of,
    copied,
    entry_of,
    key_of,
    tensors_of,
)
from prepared import OnBuckets

from fused_optim.backends import compiled
from fused_optim.backends.interface import Bucket, BucketKey, Launch, Tables, TensorEntry
from fused_optim.distributed.geometry import Shard
from fused_optim.ops import FAMILIES, RECORD_FIELDS, SCALE_PARAMETER, AdafactorRow
from fused_optim.precision import extra_state

ARENA = 1 << 36
"""Where the program has the memory of a call."""

ARGUMENTS = (
    *("tensors", "dtype", "mode", "records", "rows", "items", "num_items", "grad_scale"),
    *("found_inf", "clip", "clip_stride", "seed_low", "seed_high"),
)
OWN = {
    "adamw_": ("flag",),
    "lion_": (),
    "grad_square_sums": ("flag", "partials", "sums"),
    "adafactor_statistics": ("more", "num_more", "scratch", "sums"),
    "adafactor_finalise_": ("more", "num_more", "flag", "scratch"),
    "adafactor_update_sums": ("scratch",),
    "adafactor_apply_": ("scratch",),
}
"""What each op of the extension takes beside its launch, in the order of replay.cpp's numbers."""

CALL = np.dtype(
    [("name", "S64"), ("op", "<i8"), ("flag", "<i8"), ("bytes", "<i8")]
    + [(name, "<i8") for name in ARGUMENTS]
    + [(name, "<i8") for name in ("more", "num_more", "scratch", "partials", "sums")]
)
"""Call of replay.cpp."""

ADDRESSES = {"records", "rows", "items", "grad_scale", "found_inf", "clip"}
ADDRESSES |= {"more", "scratch", "partials", "sums"}
ADDRESS_FIELDS = RECORD_FIELDS.index("layout") + 1  # the first fields of a record
STAGES = ("adafactor_statistics", "adafactor_finalise_", "adafactor_update_sums")
STAGES += ("adafactor_apply_",)


class Memory:
    """Storages of tensors, and the places that they have in the program's memory.

    They keep their alignment to 64 bytes, and there are bytes between them that nothing may write.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
        self._parts, end = [], 0
        for first, storage in sorted(storages.items()):
            if storage.nbytes():
                end += 64 + (first - end) % 64
                part = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
                self._parts.append((first, end, part))
                end += len(part)
        self.bytes = (end + 64) // 4096 * 4096 + 4096

    def place(self, address: int) -> int:
        """Return where the program has what is at an address here, and 0 for a null."""
        for first, place, part in self._parts:
            if first <= address < first + len(part):
                return ARENA + place + address - first
        if address:
            raise KeyError(f"no tensor that is known has the address {address:#x}")
        return 0

    def image(self, records: torch.Tensor) -> bytes:
        """Return all memory as the program has it, the addresses in records being its own."""
        found = np.zeros(self.bytes, np.uint8)
        for _, place, part in self._parts:
            found[place : place + len(part)] = part
        moved = records.clone()
        for row, column in itertools.product(range(len(moved)), range(ADDRESS_FIELDS)):
            moved[row, column] = self.place(int(moved[row, column]))
        first = self.place(records.data_ptr()) - ARENA
        found[first : first + records.nbytes] = moved.view(torch.uint8).numpy().reshape(-1)
        return found.tobytes()


class Recorder:
    """Stands in for the extension: runs its ops, and writes the calls to a file.

    Attributes:
        tables: those of the call.
        tensors: what the call may touch beside its tables.
        name: what its calls are called in a message.
    """

    def __init__(self, extension: ModuleType, file: BinaryIO) -> None:
        self._extension, self._file = extension, file
        self.tables: Tables | None = None
        self.tensors: list[torch.Tensor] = []
        self.name = ""

    def __getattr__(self, name: str) -> Any:
        return (
            functools.partial(self._call, name) if name in OWN else getattr(self._extension, name)
        )

    def Launch(self, **given: Any) -> dict[str, Any]:  # noqa: N802  the extension's name
        return given

    def _call(self, op: str, launch: dict[str, Any], *own: int) -> None:
        tables = self.tables
        scalars = (tables.grad_scale, tables.found_inf, tables.clip)
        maps = (tables.records, tables.rows, tables.scratch, *tables.maps.values())
        memory = Memory([*self.tensors, *maps, *scalars])
        values = {name: launch[name] for name in ARGUMENTS} | dict(zip(OWN[op], own, strict=True))
        values |= {name: memory.place(values[name]) for name in ADDRESSES & values.keys()}
        call = np.zeros((), CALL)
        call["name"], call["op"] = f"{op} {self.name}".encode(), list(OWN).index(op)
        call["bytes"] = memory.bytes
        for name, value in values.items():
            call[name] = value
        before = memory.image(tables.records)
        getattr(self._extension, op)(self._extension.Launch(**launch), *own)
        for part in (call.tobytes(), before, memory.image(tables.records)):
            self._file.write(part)


class Recording(OnBuckets):
    """The ops of the `cpu` backend on buckets, whose calls are written to a file."""

    def __init__(self, cpu: ModuleType, file: BinaryIO) -> None:
        self.recorder = Recorder(cpu._ops.extension, file)
        super().__init__(compiled.WithAdafactor(self.recorder, cpu._place))

    def tables(self, bucket: Bucket, op: str, launch: Launch | None = None) -> Tables:
        tables, layouts = super().tables(bucket, op, launch), self.plan(bucket)._device_blocks
        tensors = [t for entry in bucket.entries for t in tensors_of(entry).values()]
        self.recorder.tensors = tensors + ([] if layouts is None else [layouts])
        self.recorder.tables = tables
        return tables

    def run(self, ops: Iterable[str], bucket: Bucket, launch: Launch, name: str) -> None:
        """Run ops one after the other."""
        self.recorder.name, make = name, compiled.new

        def new(tables: Tables, numel: int) -> torch.Tensor:
            self.recorder.tensors.append(made := make(tables, numel).zero_())
            return made

        with mock.patch.object(compiled, "new", new):
            for op in ops:
                getattr(self, op)(bucket, launch)


# --- the calls ------------------------------------------------------------------------------------


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
        row = AdafactorRow(
            b2=0.9, omb2=0.1, b1=0.9, omb1=0.1, flags=SCALE_PARAMETER * (number % 3 > 0)
        )
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
        for name, bucket in adafactor_buckets():
            ops.run(STAGES, bucket, launch, name)
            ops.run(STAGES, bucket, Launch(seed=7, sums_wanted=False), f"{name}, no sums")
