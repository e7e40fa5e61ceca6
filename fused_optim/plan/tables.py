"""The launch plan: a bucket as the device tables that GPU kernels read.

A plan packs the tensor records, rows and chunk maps of docs/kernel_contract.md and keeps them on
the device from step to step. It holds addresses and sizes, and no parameter, gradient or state.

A backend's op calls `tables_for` and passes what it needs to its kernel:

    tables = tables_for(bucket, launch)
    chunks = tables.chunks(CHUNK_SIZE)
    kernel(tables.records, tables.rows, chunks, len(chunks), tables.grad_scale, tables.found_inf,
           tables.clip, tables.clip_stride, tables.seed_low, tables.seed_high)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import torch

from fused_optim.backends.interface import Bucket, Launch
from fused_optim.ops import RECORD_FIELDS, RECORD_SIZE
from fused_optim.plan import records as plan_records
from fused_optim.plan import upload as plan_upload

_COLUMN = {name: index for index, name in enumerate(RECORD_FIELDS)}
_SHAPE_COLUMNS = [
    _COLUMN[name]
    for name in (
        *("numel", "batch", "rows", "cols", "exp_avg_dtype", "exp_avg_sq_dtype"),
        *("global_numel", "global_rows", "global_cols"),
    )
]

Counts = Callable[[int, int, int], int]
"""(batch, rows, cols) of a tensor to a number of tiles, or of float32 of scratch."""


@dataclasses.dataclass(slots=True)
class Tables:
    """Everything the kernels of one op read that is not a constant of the backend.

    Attributes:
        records: ``[tensors, 24]`` int64.
        rows: ``[rows, 16]`` int32, bits of float32.
        grad_scale: float32, one value; 1 where there is none.
        found_inf: float32, one value; 0 where there is none.
        clip: float32, one value or one per tensor; 1 where there is none.
        clip_stride: 1 where ``clip`` has one value per tensor, else 0.
        seed_low: low half of the seed, as the int32 of these bits.
        seed_high: high half of the seed, likewise.
        scratch_numel: float32 of scratch that the records' ``scratch`` fields span.
    """

    records: torch.Tensor
    rows: torch.Tensor
    grad_scale: torch.Tensor
    found_inf: torch.Tensor
    clip: torch.Tensor
    clip_stride: int
    seed_low: int
    seed_high: int
    scratch_numel: int
    plan: Plan

    def chunks(self, chunk_size: int) -> torch.Tensor:
        """Return the chunk map of the elementwise ops: int32 ``[chunks, 2]``."""
        return self.plan.index_map(
            ("chunks", chunk_size), lambda b, r, c: -(-b * r * c // chunk_size)
        )

    def tiles(self, key: Hashable, counts: Counts) -> torch.Tensor:
        """Return a map of (tensor index, tile index), int32 ``[tiles, 2]``, kept under ``key``.

        Args:
            key: distinguishes this map from the plan's others.
            counts: tiles of a non-empty ``[batch, rows, cols]`` tensor; empty ones have none.
        """
        return self.plan.index_map(("tiles", key), counts)

    def derived(self, key: Hashable, function: Callable[[torch.Tensor], Any]) -> Any:
        """Return ``function(records)``, on the host, kept until shapes or dtypes change."""
        return self.plan.derived(key, function)

    def scratch(self, numel: int | None = None) -> torch.Tensor:
        """Return float32 scratch memory, at least ``numel`` (`scratch_numel`), kept by the plan."""
        return self.plan.scratch(self.scratch_numel if numel is None else numel)


def tables_for(bucket: Bucket, launch: Launch, scratch_size: Counts | None = None) -> Tables:
    """Return the tables of a launch; packs and uploads what changed since the bucket's last step.

    Args:
        bucket: the tensors.
        launch: the launch's parameters.
        scratch_size: for Adafactor, the backend's ``adafactor_scratch(batch, rows, cols)``: how
            many float32 of scratch a tensor needs. Fills the records' ``scratch`` field; every op
            of a step has to give the same function.
    """
    plan = bucket.plan
    if plan is None:
        plan = bucket.plan = bucket.kept_plan or Plan(bucket.key.device)
        plan.pack(bucket)
    if scratch_size is not None:
        plan.lay_out_scratch(scratch_size)
    device = bucket.key.device
    if device.type == "cuda":
        plan.used_on(torch.cuda.current_stream(device))
    return Tables(
        records=plan.records,
        rows=plan.rows,
        grad_scale=_value(launch.grad_scale, 1.0, device),
        found_inf=_value(launch.found_inf, 0.0, device),
        clip=_value(launch.clip, 1.0, device),
        clip_stride=int(launch.clip is not None and launch.clip_per_tensor),
        seed_low=_signed(launch.seed & 0xFFFFFFFF),
        seed_high=_signed(launch.seed >> 32 & 0xFFFFFFFF),
        scratch_numel=plan.scratch_numel,
        plan=plan,
    )


class Plan:
    """The device tables of one bucket, kept from step to step.

    Attributes:
        host: what the device's records are, on the host.
        records: int64 ``[tensors, 24]`` on the device.
        rows: int32 ``[rows, 16]`` on the device.
        scratch_numel: see `Tables`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.host = torch.empty(0, RECORD_SIZE, dtype=torch.int64, device="cpu")
        self.records = torch.empty(0, RECORD_SIZE, dtype=torch.int64, device=device)
        self.rows = torch.empty(0, 16, dtype=torch.int32, device=device)
        self.scratch_numel = 0
        self._packed_rows = b""
        self._blocks: list[list[int]] = []  # layout blocks, as on the device
        self._device_blocks: torch.Tensor | None = None
        self._derived: dict[Hashable, Any] = {}
        self._scratch: torch.Tensor | None = None
        self._scratch_size: Counts | None = None
        self._streams: set[int] = set()
        # Whether all addresses of a record but the gradient's allow vector loads.
        self._aligned_but_grad = torch.empty(0, dtype=torch.int64, device="cpu")

    def pack(self, bucket: Bucket) -> None:
        """Bring the tables up to a bucket's entries and rows."""
        packed = plan_records.pack(bucket)
        records = packed.records
        if packed.blocks:
            if packed.blocks != self._blocks:
                blocks = torch.tensor(packed.blocks, dtype=torch.int64, device="cpu")
                self._device_blocks = plan_upload.uploaded(blocks, self.device)
            base, size = self._device_blocks.data_ptr(), 8 * len(packed.blocks[0])
            for number, index in enumerate(packed.block_of):
                records[index, _COLUMN["layout"]] = base + number * size
        else:
            self._device_blocks = None
        self._blocks = packed.blocks
        self._aligned_but_grad = packed.aligned_but_grad
        self._forget_shapes(records)
        if self._scratch_size is not None:
            self._set_scratch(records)
        self._send_records(records)
        if bucket.row_table is not None:
            self.rows, self._packed_rows = bucket.row_table, b""
        else:
            self.set_rows(bucket.rows)

    def uploaded_bytes(self) -> int:
        """Return an upper bound of what a new plan of the same bucket copies to the device."""
        maps = [value for value in self._derived.values() if isinstance(value, torch.Tensor)]
        tables = [self.records, self.records, *maps]
        if self._device_blocks is not None:
            tables.append(self._device_blocks)
        return sum(table.nbytes + plan_upload.STAGING_UNIT for table in tables)

    def set_rows(self, rows: list) -> None:
        """Bring the row table up to ``rows``."""
        packed = plan_records.pack_rows(rows)
        if packed == self._packed_rows:
            return
        host = torch.frombuffer(bytearray(packed), dtype=torch.int32).view(-1, 16)
        if self.rows.shape != host.shape:
            self.rows = torch.empty(host.shape, dtype=torch.int32, device=self.device)
        plan_upload.upload_(self.rows, host)
        self._packed_rows = packed

    def set_gradients(self, addresses: torch.Tensor) -> None:
        """Bring the gradients' addresses up to ``addresses``, int64 ``[tensors]`` on the host."""
        aligned = self._aligned_but_grad * ((addresses & 15) == 0)
        for name, values in (("grad", addresses), ("flags", aligned)):
            column = _COLUMN[name]
            if not torch.equal(self.host[:, column], values):
                plan_upload.upload_(self.records[:, column], values)
                self.host[:, column] = values

    def lay_out_scratch(self, size: Counts) -> None:
        """Give every tensor its part of the scratch buffer, where that was not done before."""
        if self._scratch_size is size:
            return
        self._scratch_size = size
        records = self.host.clone()
        self._set_scratch(records)
        self._send_records(records)

    def index_map(self, key: Hashable, counts: Counts) -> torch.Tensor:
        """Return int32 ``[sum(counts), 2]`` of (tensor, 0 .. count - 1), kept under ``key``."""
        return self.derived(key, lambda records: self._new_map(_counted(records, counts)))

    def derived(self, key: Hashable, function: Callable[[torch.Tensor], Any]) -> Any:
        """Return ``function(records)``, on the host, kept until shapes or dtypes change."""
        if key not in self._derived:
            self._derived[key] = function(self.host)
        return self._derived[key]

    def scratch(self, numel: int) -> torch.Tensor:
        """Return float32 scratch memory of at least ``numel`` values."""
        if self._scratch is None or self._scratch.numel() < numel:
            self._scratch = torch.empty(max(numel, 1), dtype=torch.float32, device=self.device)
        return self._scratch

    def used_on(self, stream: Any) -> None:
        """Keep the tables' memory until the kernels of a CUDA stream are done with it.

        Memory that is dropped goes back to the stream it came from, which knows of no other.
        """
        self._streams.add(stream.cuda_stream)
        if len(self._streams) == 1:
            return
        kept = [self.records, self.rows, self._device_blocks, self._scratch]
        for tensor in (*kept, *self._derived.values()):
            if isinstance(tensor, torch.Tensor):
                plan_upload.record_stream(tensor, stream)

    def _forget_shapes(self, records: torch.Tensor) -> None:
        """Drop what was derived from shapes and dtypes that ``records`` no longer has."""
        if not torch.equal(self.host[:, _SHAPE_COLUMNS], records[:, _SHAPE_COLUMNS]):
            self._derived.clear()
            self._scratch = None

    def _new_map(self, counts: list[int]) -> torch.Tensor:
        count = torch.tensor(counts, dtype=torch.int64, device="cpu")
        tensor = torch.repeat_interleave(torch.arange(len(count), device="cpu"), count)
        first = torch.cumsum(count, 0) - count
        within = torch.arange(len(tensor), device="cpu") - first[tensor]
        host = torch.stack([tensor, within], 1).to(torch.int32)
        return plan_upload.uploaded(host, self.device)

    def _set_scratch(self, records: torch.Tensor) -> None:
        # Whole sectors of 128 bytes, so that neighbours never share one.
        sizes = [(size + 31) // 32 * 32 for size in _counted(records, self._scratch_size)]
        sizes = torch.tensor(sizes, dtype=torch.int64, device="cpu")
        ends = torch.cumsum(sizes, 0)
        records[:, _COLUMN["scratch"]] = ends - sizes
        self.scratch_numel = int(ends[-1]) if len(ends) else 0

    def _send_records(self, records: torch.Tensor) -> None:
        """Upload the columns in which ``records`` differs from what is on the device."""
        if records.shape != self.host.shape:
            self.records = plan_upload.uploaded(records, self.device)
        else:
            changed = (records != self.host).any(0).nonzero().flatten().tolist()
            if len(changed) > 2:
                plan_upload.upload_(self.records, records)
            else:
                for column in changed:
                    plan_upload.upload_(self.records[:, column], records[:, column].contiguous())
        self.host = records


def _counted(records: torch.Tensor, size: Counts) -> list[int]:
    shapes = [_COLUMN[name] for name in ("batch", "rows", "cols", "numel")]
    return [
        size(batch, rows, cols) if numel else 0
        for batch, rows, cols, numel in records[:, shapes].tolist()
    ]


def _value(given: torch.Tensor | None, otherwise: float, device: torch.device) -> torch.Tensor:
    if given is None:
        return plan_upload.constant(otherwise, device)
    return given.to(device=device, dtype=torch.float32).contiguous()


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
