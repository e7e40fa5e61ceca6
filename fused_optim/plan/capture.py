"""Capturable groups: step counts, learning rates and row tables that live on the device.

A step of such a group reads nothing back, so a CUDA graph can hold it, and each replay advances the
step counts and follows hyperparameters that are tensors.

note: [capture] A graph reads from the addresses that its capture saw, for as long as it lives. So a
captured step shares no table with other steps: its tables are new, lie in the graph's own memory,
and each replay fills them from pinned memory that is never given back (`upload`).
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Hashable
from typing import Any

import torch

from fused_optim import errors
from fused_optim.backends.interface import Bucket, Row, TensorEntry
from fused_optim.ops import ROW_SIZE, float_fields
from fused_optim.plan import upload
from fused_optim.plan.owner import Owner
from fused_optim.plan.tables import Plan
from fused_optim.precision import checks, state_values


def make_lr_tensor(group: dict[str, Any]) -> None:
    """Make a capturable group's learning rate a tensor, which schedulers then write in place."""
    lr, params = group.get("lr"), sorted(group["params"], key=checks.trains, reverse=True)
    if isinstance(lr, numbers.Real) and params:
        group["lr"] = torch.tensor(float(lr), dtype=torch.float64, device=params[0].device)


def check_capture(optimizer: Owner, pending: list) -> None:
    """Refuse a step that can't be captured, before anything was changed.

    Args:
        optimizer: whose step it is.
        pending: what it updates, see `fused_optim.plan.collect.Pending`.

    Raises:
        RuntimeError: a group is not capturable or has a learning rate that a replay would not
            follow, or a parameter has no state yet.
    """
    name, groups = type(optimizer).__name__, optimizer.param_groups
    for index, place, param, _, _ in pending:
        group = optimizer.settings(groups[index])
        if not group["capturable"]:
            raise RuntimeError(
                f"{name}: step() is being captured into a CUDA graph, and group {index} has "
                "capturable=False: its step counts and learning rate would be frozen. Construct "
                "the optimizer with capturable=True"
            )
        lr = group["lr"]
        unused = group.get("relative_step", False)  # Adafactor's own, which is on the device
        if not unused and getattr(lr, "device", None) != param.device:
            raise RuntimeError(
                f"{name}: the learning rate of group {index} is {lr!r}, which a replayed graph "
                f"would not follow; keep a tensor of {param.device} in group['lr'] and write to it "
                "with fill_()"
            )
        if "step" not in optimizer.state[param]:
            where = errors.place(group, index, place)
            raise RuntimeError(
                f"{name}: {where} has no state yet, and a graph that creates it would reset it at "
                "each replay; run a step on a side stream before the capture"
            )


def prepare_capture(plans: list[Plan]) -> None:
    """Reserve what a captured step like one with these plans needs and could not allocate."""
    plans = [plan for plan in plans if plan.key.capturable]
    if plans:
        upload.reserve_for_capture(sum(plan.uploaded_bytes() for plan in plans))


def advance(steps: list[torch.Tensor], found_inf: torch.Tensor | None, by: int = 1) -> None:
    """Add ``by`` to each step count, where ``found_inf`` is absent or 0."""
    if not steps:
        return
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for step in steps:
        by_device.setdefault(step.device, []).append(step)
    for device, there in by_device.items():
        one: Any = by
        if found_inf is not None:
            one = by * (found_inf.to(device).reshape(()) == 0).to(state_values.STEP_DTYPE)
        torch._foreach_add_(there, one)


@dataclasses.dataclass(slots=True)
class DeviceRows:
    """The tensors of a capturable bucket, sorted by what their scalars depend on.

    Each tensor has a step count of its own; tensors of one group and variant share the formula.
    """

    known: dict[tuple[int, Hashable], tuple[list[torch.Tensor], list[TensorEntry]]] = (
        dataclasses.field(default_factory=dict)
    )

    def add(self, group: int, variant: Hashable, step: torch.Tensor, entry: TensorEntry) -> None:
        """Note an entry of the bucket, its step count, and the index of its group."""
        steps, entries = self.known.setdefault((group, variant), ([], []))
        steps.append(step)
        entries.append(entry)

    def fill(self, bucket: Bucket, row_of: Callable[[int, Any, Hashable], Row]) -> None:
        """Give the bucket its rows: a table on the device, or for eager Python doubles.

        Args:
            bucket: gets its ``rows``, and its entries the indices of theirs.
            row_of: (group index, step count or counts, variant) to a row.
        """
        parts, first = [], 0
        for (group, variant), (steps, entries) in self.known.items():
            for row, entry in enumerate(entries, first):
                entry.row = row
            first += len(entries)
            # found_inf may leave a count at 0, in a step that it skips. Nothing reads that row.
            if bucket.backend == "eager":  # on a CPU, where reading a tensor costs nothing
                bucket.rows += [row_of(group, max(1, int(step)), variant) for step in steps]
            else:
                counts = torch.stack(steps).clamp(min=1).to(torch.float64)
                parts.append(row_table(row_of(group, counts, variant), len(steps)))
        if parts:
            bucket.rows = torch.cat(parts)


def row_table(row: Row, count: int) -> torch.Tensor:
    """Return int32 ``[count, 16]`` as `fused_optim.plan.records.pack_rows` would pack it.

    Args:
        row: its fields are numbers or float64 tensors of ``[]`` or ``[count]``; ``step`` is a
            tensor, on the device of the table.
        count: how many rows.
    """
    values = [getattr(row, field.name) for field in dataclasses.fields(row)]
    floats = float_fields(type(row))
    table = torch.zeros(count, ROW_SIZE, dtype=torch.float64, device=row.step.device)
    for column, value in enumerate(values[:floats]):
        _set(table[:, column], value)
    words = table.to(torch.float32).view(torch.int32)
    for column, value in enumerate(values[floats:], floats):
        _set(words[:, column], _uint32_bits(value) if isinstance(value, torch.Tensor) else value)
    return words


def _set(column: torch.Tensor, value: Any) -> None:
    """Write a number or a tensor, without a copy from the host."""
    if isinstance(value, torch.Tensor):
        column.copy_(value)
    else:
        column.fill_(value)


def _uint32_bits(counts: torch.Tensor) -> torch.Tensor:
    """Return the int32 of the same bits as ``counts`` modulo 2**32."""
    low = counts.to(torch.int64) & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32)
