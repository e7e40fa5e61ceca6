"""Writes calls of the CPU kernels to a file, with the memory before and after each: `Recording`.

The program of cpu_replay.py runs them again, without Python, under a sanitizer or for another
architecture, and compares every byte. cpu_calls.py has the calls.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from types import ModuleType
from typing import Any, BinaryIO
from unittest import mock

import numpy as np
import torch
from entries import tensors_of
from prepared import OnBuckets

from fused_optim.backends import compiled
from fused_optim.backends.interface import Bucket, Launch, Tables
from fused_optim.ops import RECORD_FIELDS

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
        written: for each call in the file, its op and where the program has which memory.
    """

    def __init__(self, extension: ModuleType, file: BinaryIO) -> None:
        self._extension, self._file = extension, file
        self.tables: Tables | None = None
        self.tensors: list[torch.Tensor] = []
        self.name = ""
        self.written: list[tuple[str, Memory]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._extension, name)
        return functools.partial(self._call, name) if name in OWN else found

    def Launch(self, **given: Any) -> dict[str, Any]:  # noqa: N802  the extension's name
        return given

    def _call(self, op: str, launch: dict[str, Any], *own: int) -> None:
        tables, run = self.tables, getattr(self._extension, op)
        if not launch["num_items"] and not OWN[op].count("more"):
            run(self._extension.Launch(**launch), *own)  # which does nothing
            return
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
        run(self._extension.Launch(**launch), *own)
        self.written.append((op, memory))
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
