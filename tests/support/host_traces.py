"""Which addresses the CUDA kernels touch: one step of a bucket, on the kernels compiled as C++.

The host module counts accesses through the functions of csrc/common/device.cuh by which kernels
reach tensors and statistics; tables, scalars and most of scratch it does not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import bench_package  # noqa: F401
import host_module
import numpy as np
import torch
from entries import records_of

from bench.traffic import Kind
from fused_optim.backends.interface import Bucket, BucketKey, Launch, TensorEntry
from fused_optim.ops import FAMILIES, SCALE_PARAMETER, AdafactorRow
from fused_optim.precision import extra_state

ACCESS = np.dtype(
    [("address", "<i8")]
    + [(name, "<i4") for name in ("launch", "block", "thread", "turn", "bytes", "stores")]
)
"""host::Access of csrc/host/fibers.h."""

PASSES = {
    ("adamw_", 0): "step",
    ("lion_", 0): "step",
    ("adafactor_statistics", 0): "statistics",
    ("adafactor_statistics", 1): "fold",
    ("adafactor_finalise_", 0): "finalise",
    ("adafactor_update_sums", 0): "update_sums",
    ("adafactor_apply_", 0): "apply",
}
"""(op, number of the launch in it) to the name of a pass, in the order of a step."""

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
RESIDENT = 4  # blocks that the host device runs at once, where a test asks for no other number


@dataclass
class Trace:
    """The accesses of one launch, in the order of its threads' turns."""

    name: str
    accesses: np.ndarray

    def of(self, tensor: torch.Tensor) -> np.ndarray:
        first = tensor.data_ptr()
        address = self.accesses["address"]
        return self.accesses[(address >= first) & (address < first + tensor.nbytes)]


def bucket_of(kind: Kind, shapes: Sequence[tuple[int, ...]]) -> Bucket:
    """Return a bucket of random tensors. Moments and statistics are those of some earlier step."""
    dtype = getattr(torch, kind.dtype)
    key = BucketKey(kind.op, torch.device("cpu"), dtype, kind.mode, kind.amsgrad, False)
    family = FAMILIES[kind.op]
    if family.elementwise:
        row: Any = family.row()
    else:
        flags = SCALE_PARAMETER if kind.scale_parameter else 0
        row = AdafactorRow(b2=0.9, omb2=0.1, b1=0.9 * kind.beta1, flags=flags)
    return Bucket(key, [_entry(kind, shape) for shape in shapes], [row])


def _entry(kind: Kind, shape: tuple[int, ...]) -> TensorEntry:
    dtype = getattr(torch, kind.dtype)
    packed = kind.state_dtype == "uint8"  # moments in 8 bits
    param = torch.randn(shape).to(dtype)
    entry = TensorEntry(param, torch.randn(shape).to(getattr(torch, kind.grad_dtype)))
    state = getattr(torch, "float32" if packed else kind.state_dtype or "float32")
    if FAMILIES[kind.op].elementwise:
        entry.exp_avg = torch.zeros(shape, dtype=state)
        entry.exp_avg_sq = torch.rand(shape).to(state) if kind.op == "adamw" else None
        entry.max_exp_avg_sq = torch.rand(shape).to(state) if kind.amsgrad else None
    else:
        entry.exp_avg = torch.zeros(shape, dtype=state) if kind.beta1 else None
        entry.exp_avg_sq = torch.rand(shape[:-1] if kind.factored else shape)
        if kind.factored:
            entry.max_exp_avg_sq = torch.rand(shape[:-2] + shape[-1:])
    if packed:
        moments = {name: m for name in MOMENTS if (m := getattr(entry, name)) is not None}
        for name, records in records_of(moments).items():
            setattr(entry, name, records)
    extra = extra_state(kind.mode, dtype)
    entry.extra = torch.zeros(shape, dtype=extra[1]) if extra else None
    return entry


def traces(bucket: Bucket, resident: int = RESIDENT) -> list[Trace]:
    """Run one step of a bucket on a device of ``resident`` blocks; return its launches."""
    cuda = host_module.kernels()
    extension, found = cuda.backend._C, []
    extension.set_resident_blocks(resident)
    before, extension.adafactor_blocks = extension.adafactor_blocks, lambda device: resident
    try:
        for op in dict.fromkeys(op for op, _ in PASSES if op.startswith(bucket.key.op)):
            extension.take_counters()
            extension.take_trace(True)
            getattr(cuda, op)(bucket, Launch(sums_wanted=False))  # no clipping by norm
            accesses = np.frombuffer(extension.take_trace(False), ACCESS)
            accesses = accesses[np.argsort(accesses["turn"], kind="stable")]
            for number in range(extension.take_counters()["launches"]):
                if (op, number) not in PASSES:
                    raise KeyError(f"launch {number} of {op} has no name: give it one in PASSES")
                ours = accesses[accesses["launch"] == number]
                found.append(Trace(PASSES[op, number], ours))
    finally:
        extension.take_trace(False)
        extension.set_resident_blocks(RESIDENT)
        extension.adafactor_blocks = before
    return found
