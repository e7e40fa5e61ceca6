"""The launch plan, which turns a bucket into the device tables that kernels read.

A plan packs the tensor records, rows and maps of docs/internals/kernel_contract.md and keeps them
on the device from step to step. It holds addresses and sizes, and no parameter, gradient or state.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable
from typing import Any

import torch

from fused_optim.backends import dispatch
from fused_optim.backends.interface import Bucket, BucketKey, Launch, Needs, Shape, Tables
from fused_optim.ops import RECORD_SIZE, ROW_SIZE
from fused_optim.plan import maps, upload
from fused_optim.plan import records as plan_records
from fused_optim.plan.records import COLUMN

_DERIVED_FROM = [*maps.SIZES, *maps.WHOLE, *plan_records.MOMENT_DTYPES]


class Plan:
    """The device tables of one bucket, kept from step to step.

    Attributes:
        key: the bucket's.
        backend: the name of the backend that reads them.
        host: a copy of the records on the host.
        records: int64 ``[tensors, 24]`` on the device.
        rows: int32 ``[rows, 16]`` on the device.
        scratch_numel: float32 of scratch that the records' ``scratch`` fields span.
    """

    def __init__(self, key: BucketKey, backend: str) -> None:
        self.key = key
        self.backend = backend
        self.host = torch.empty(0, RECORD_SIZE, dtype=torch.int64, device="cpu")
        self.records = torch.empty(0, RECORD_SIZE, dtype=torch.int64, device=key.device)
        self.rows = torch.empty(0, ROW_SIZE, dtype=torch.int32, device=key.device)
        self.scratch_numel = 0
        self._packed_rows = b""
        self._blocks: list[list[int]] = []  # the layout blocks that the device has
        self._device_blocks: torch.Tensor | None = None
        self._derived: dict[Hashable, Any] = {}
        self._scratch: torch.Tensor | None = None
        self._lays_out: Needs | None = None  # whose scratch memory the records have parts of
        self._streams: set[int] = set()
        self._ready: dict[tuple[str, bool], Tables] = {}  # by op and sums_wanted
        self._seed = 0  # that the ready tables have
        # 1 for a record whose addresses, apart from the gradient's, allow vector loads.
        self._aligned_but_grad = torch.empty(0, dtype=torch.int64, device="cpu")

    def pack(self, bucket: Bucket) -> None:
        """Bring the tables up to a bucket's entries and rows."""
        self._ready.clear()
        packed = plan_records.pack(bucket)
        records = packed.records
        if packed.blocks:
            if packed.blocks != self._blocks:
                blocks = torch.tensor(packed.blocks, dtype=torch.int64, device="cpu")
                self._device_blocks = upload.uploaded(blocks, self.key.device)
            base, size = self._device_blocks.data_ptr(), 8 * len(packed.blocks[0])
            for number, index in enumerate(packed.block_of):
                records[index, COLUMN["layout"]] = base + number * size
        else:
            self._device_blocks = None
        self._blocks = packed.blocks
        self._aligned_but_grad = packed.aligned_but_grad
        self._forget_shapes(records)
        if self._lays_out is not None:
            self._set_scratch(records)
        self._send_records(records)
        if isinstance(bucket.rows, torch.Tensor):
            self.rows, self._packed_rows = bucket.rows, b""
        else:
            self.set_rows(bucket.rows)

    def tables(self, op: str, launch: Launch) -> Tables:
        """Return what the kernels of one of the backend's ops read."""
        if launch.seed != self._seed:
            self._seed = launch.seed
            self._ready.clear()
        ready = self._ready.get((op, launch.sums_wanted))
        if ready is None:
            ready = self._made(op, launch)
            self._ready[op, launch.sums_wanted] = ready
        device = self.key.device
        if device.type == "cuda":
            self.used_on(torch.cuda.current_stream(device))
        if launch.grad_scale is None and launch.found_inf is None and launch.clip is None:
            return ready
        return dataclasses.replace(
            ready,
            grad_scale=upload.value(launch.grad_scale, ready.grad_scale),
            found_inf=upload.value(launch.found_inf, ready.found_inf),
            clip=upload.value(launch.clip, ready.clip),
            clip_stride=int(launch.clip is not None and launch.clip_per_tensor),
        )

    def _made(self, op: str, launch: Launch) -> Tables:
        """Return the tables of an op in a step that neither scales, skips nor clips."""
        needs = dispatch.load(self.backend).needs(op, launch)
        if needs.scratch is not None:
            self._lay_out_scratch(needs)
        one = upload.constant(1.0, self.key.device)
        return Tables(
            key=self.key,
            records=self.records,
            rows=self.rows,
            shapes=self._shapes(needs),
            maps={name: self._map(name, needs) for name in needs.maps},
            scratch=self._scratch_memory(0 if needs.scratch is None else self.scratch_numel),
            grad_scale=one,
            found_inf=upload.constant(0.0, self.key.device),
            clip=one,
            clip_stride=0,
            seed_low=upload.signed(launch.seed & 0xFFFFFFFF),
            seed_high=upload.signed(launch.seed >> 32 & 0xFFFFFFFF),
            draws=self._fact("draws", self._draws),
            packed=self._fact("packed", lambda: plan_records.keep(self.host, [torch.uint8])),
            some_empty=self._fact("some empty", self._some_empty),
        )

    def scratch_of(self, index: int) -> tuple[torch.Tensor, Shape, bool]:
        """Return a tensor's own scratch memory and shape, and whether it is factored."""
        names = ("scratch", "max_exp_avg_sq", "batch", "rows", "cols")
        first, col_state, *shape = (int(self.host[index, COLUMN[name]]) for name in names)
        cut = int(self.host[index, COLUMN["cut"]])
        return self._scratch[first:], Shape(*shape, sharded=True, cut=cut), bool(col_state)

    def uploaded_bytes(self) -> int:
        """Return how many bytes a new plan of the same bucket copies to the device, at most."""
        maps = [value for value in self._derived.values() if isinstance(value, torch.Tensor)]
        tables = [self.records, self.records, *maps]
        if self._device_blocks is not None:
            tables.append(self._device_blocks)
        return sum(table.nbytes + upload.STAGING_UNIT for table in tables)

    def set_rows(self, rows: list) -> None:
        """Bring the row table up to ``rows``."""
        packed = plan_records.pack_rows(rows)
        if packed == self._packed_rows:
            return
        host = torch.frombuffer(bytearray(packed), dtype=torch.int32).view(-1, ROW_SIZE)
        if self.rows.shape != host.shape:
            self._ready.clear()
            self.rows = torch.empty(host.shape, dtype=torch.int32, device=self.key.device)
        upload.upload_(self.rows, host)
        self._packed_rows = packed

    def set_gradients(self, addresses: torch.Tensor) -> None:
        """Bring the gradients' addresses up to ``addresses``, int64 ``[tensors]`` on the host."""
        column = COLUMN["grad"]
        if torch.equal(self.host[:, column], addresses):
            return
        records = self.host.clone()
        records[:, column] = addresses
        records[:, COLUMN["flags"]] = self._aligned_but_grad * ((addresses & 15) == 0)
        self._send_records(records)

    def used_on(self, stream: Any) -> None:
        """Keep the tables' memory until the kernels of a CUDA stream are done with it.

        The allocator gives freed memory to the stream that it came from, and waits for no other.
        """
        self._streams.add(stream.cuda_stream)
        if len(self._streams) == 1:
            return
        kept = [self.records, self.rows, self._device_blocks, self._scratch]
        for tensor in (*kept, *self._derived.values()):
            if isinstance(tensor, torch.Tensor):
                upload.record_stream(tensor, stream)

    def _lay_out_scratch(self, needs: Needs) -> None:
        """Give every tensor its part of the scratch buffer, unless it has that part already."""
        if self._lays_out is not None and self._lays_out.scratch is needs.scratch:
            return
        self._lays_out = needs
        self._ready.clear()
        records = self.host.clone()
        self._set_scratch(records)
        self._send_records(records)

    def _map(self, name: str, needs: Needs) -> torch.Tensor:
        """Return int32 ``[sum(counts), 2]`` of (tensor, 0 .. count - 1), until shapes change."""
        counts, sizes = needs.maps[name], needs.sizes.get(name)
        packed = functools.partial(maps.packed, self.host, counts, sizes)
        return self._fact((name, counts), lambda: upload.uploaded(packed(), self.key.device))

    def _shapes(self, needs: Needs) -> torch.Tensor:
        if needs.shapes is None:
            return self.records[:0]
        described = functools.partial(maps.described, self.host, needs.shapes)
        return self._fact("shapes", lambda: upload.uploaded(described(), self.key.device))

    def _fact(self, key: Hashable, find: Any) -> Any:
        """Return ``find()``, kept until shapes or dtypes change."""
        if key not in self._derived:
            self._derived[key] = find()
        return self._derived[key]

    def _draws(self) -> bool:
        rounded = (torch.bfloat16, torch.uint8)
        return self.key.mode == "stochastic" or plan_records.keep(self.host, rounded)

    def _some_empty(self) -> bool:
        return bool((self.host[:, COLUMN["numel"]] == 0).any())

    def _scratch_memory(self, numel: int) -> torch.Tensor:
        if self._scratch is None or self._scratch.numel() < numel:
            self._scratch = torch.empty(max(numel, 1), dtype=torch.float32, device=self.key.device)
        return self._scratch

    def _forget_shapes(self, records: torch.Tensor) -> None:
        """Drop what was derived from shapes and dtypes, where those of ``records`` differ."""
        if not torch.equal(self.host[:, _DERIVED_FROM], records[:, _DERIVED_FROM]):
            self._derived.clear()
            self._scratch = None

    def _set_scratch(self, records: torch.Tensor) -> None:
        needs = self._lays_out
        if needs.cut is not None:
            cut = self._fact("cut", lambda: needs.cut(maps.shapes(records), self.key))
            records[:, COLUMN["cut"]] = cut
        # A tensor's part is a number of whole 128-byte lines, so that no two tensors share one.
        sizes = [(size + 31) // 32 * 32 for size in maps.counted(records, needs.scratch)]
        sizes = torch.tensor(sizes, dtype=torch.int64, device="cpu")
        ends = torch.cumsum(sizes, 0)
        records[:, COLUMN["scratch"]] = ends - sizes
        self.scratch_numel = int(ends[-1]) if len(ends) else 0

    def _send_records(self, records: torch.Tensor) -> None:
        """Upload ``records`` unless they are on the device.

        All of them are one copy, of 192 bytes a tensor. A column would be less, but takes a
        temporary and a kernel besides.
        """
        if records.shape != self.host.shape:
            self.records = upload.uploaded(records, self.key.device)
        elif not torch.equal(records, self.host):
            upload.upload_(self.records, records)
        self.host = records
