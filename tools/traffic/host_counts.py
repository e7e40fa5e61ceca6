"""Runs the CUDA kernels, compiled as C++, and notes every byte they touch.

The host module of tests/support/host_module.py counts accesses through the functions of
csrc/common/device.cuh by which kernels reach tensors and statistics; tables, scalars and most of
scratch it does not see.
"""

import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench import ROOT
from bench.traffic import Kind
from fused_optim.backends.interface import Bucket, BucketKey, Launch, TensorEntry
from fused_optim.ops import FAMILIES, SCALE_PARAMETER, AdafactorRow
from fused_optim.precision import extra_state

LARGE = (272, 256)  # of several tiles, and too large for one visit
SMALL = (64, 64)
ELEMENTWISE = (64, 512)  # for ops that know no shapes: four chunks

ACCESS = np.dtype(
    [("address", "<i8")]
    + [(name, "<i4") for name in ("launch", "block", "thread", "turn", "bytes", "stores")]
)
"""host::Access of csrc/host/fibers.h."""

MODES = {
    "float32": ("none",),
    "bfloat16": ("nearest", "stochastic", "kahan", "split", "master"),
    "float16": ("nearest", "stochastic", "kahan", "master"),
}
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


def backend() -> Any:
    """Return the ops of the cuda backend over the host module, which is compiled if it was not."""
    if str(ROOT / "tests/support") not in sys.path:
        sys.path.append(str(ROOT / "tests/support"))
    import host_module

    return host_module.kernels()


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
    param = torch.randn(shape).to(dtype)
    entry = TensorEntry(param, torch.randn(shape).to(getattr(torch, kind.grad_dtype)))
    state = getattr(torch, kind.state_dtype or "float32")
    if FAMILIES[kind.op].elementwise:
        entry.exp_avg = torch.zeros(shape, dtype=state)
        entry.exp_avg_sq = torch.rand(shape).to(state) if kind.op == "adamw" else None
        entry.max_exp_avg_sq = torch.rand(shape).to(state) if kind.amsgrad else None
    else:
        entry.exp_avg = torch.zeros(shape, dtype=state) if kind.beta1 else None
        entry.exp_avg_sq = torch.rand(shape[:-1] if kind.factored else shape)
        if kind.factored:
            entry.max_exp_avg_sq = torch.rand(shape[:-2] + shape[-1:])
    extra = extra_state(kind.mode, dtype)
    entry.extra = torch.zeros(shape, dtype=extra[1]) if extra else None
    return entry


def traces(bucket: Bucket, resident: int = RESIDENT) -> list[Trace]:
    """Run one step of a bucket on a device of ``resident`` blocks; return its launches."""
    cuda = backend()
    cuda.backend._C.set_resident_blocks(resident)
    found = []
    try:
        for op in dict.fromkeys(op for op, _ in PASSES if op.startswith(bucket.key.op)):
            cuda.backend._C.take_counters()
            cuda.backend._C.take_trace(True)
            getattr(cuda, op)(bucket, Launch(sums_wanted=False))  # no clipping by norm
            accesses = np.frombuffer(cuda.backend._C.take_trace(False), ACCESS)
            accesses = accesses[np.argsort(accesses["turn"], kind="stable")]
            for number in range(cuda.backend._C.take_counters()["launches"]):
                if (op, number) not in PASSES:
                    raise KeyError(f"launch {number} of {op} has no name: give it one in PASSES")
                ours = accesses[accesses["launch"] == number]
                found.append(Trace(PASSES[op, number], ours))
    finally:
        cuda.backend._C.take_trace(False)
        cuda.backend._C.set_resident_blocks(RESIDENT)
    return found


def count(kind: Kind) -> dict[str, Any]:
    """Return launches and, by pass and tensor, bytes loaded, stored and touched."""
    elementwise = FAMILIES[kind.op].elementwise
    shape = SMALL if kind.visited else ELEMENTWISE if elementwise else LARGE
    bucket = bucket_of(kind, [shape if kind.factored else (math.prod(shape),)])
    entry, steps = bucket.entries[0], traces(bucket)
    names = ("grad", "param", "extra", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    tensors = {name: getattr(entry, name) for name in names}
    numel, passes = entry.param.numel(), {}
    for step in steps:
        found = {n: step.of(t) for n, t in tensors.items() if t is not None and t.numel() == numel}
        if moved := {name: _bytes(each) for name, each in found.items() if len(each)}:
            passes[step.name] = moved
    return {"parameters": numel, "launches": len(steps), "passes": passes}


def _bytes(found: np.ndarray) -> list[int]:
    stores = found["stores"] == 1
    # Accesses to one address are of one size, but for a tensor's tail: the largest covers them.
    order = np.lexsort((-found["bytes"], found["address"]))
    first = np.unique(found["address"][order], return_index=True)[1]
    sizes = (found["bytes"][~stores].sum(), found["bytes"][stores].sum())
    return [int(n) for n in (*sizes, found["bytes"][order][first].sum())]


def kinds() -> Iterator[Kind]:
    for dtype, modes in MODES.items():
        grads = (dtype, "bfloat16" if dtype == "float32" else "float32")
        for mode, grad in itertools.product(modes, grads):
            for state, amsgrad in itertools.product(("float32", "bfloat16"), (False, True)):
                yield Kind("adamw", dtype, grad, mode, state, amsgrad)
                if not amsgrad:
                    yield Kind("lion", dtype, grad, mode, state)
            for flags in itertools.product((False, True), repeat=4):
                names = ("scale_parameter", "beta1", "factored", "visited")
                named = dict(zip(names, flags, strict=True))
                for state in ("float32", "bfloat16") if named["beta1"] else (None,):
                    yield Kind("adafactor", dtype, grad, mode, state, **named)


def clip_counts() -> dict[str, Any]:
    """Return what the norm of an elementwise update's gradients takes, by their dtype."""
    cuda, found, launches = backend(), {}, set()
    for name in MODES:
        bucket = bucket_of(Kind("adamw", grad_dtype=name), [ELEMENTWISE])
        cuda.backend._C.take_counters()
        cuda.grad_square_sums(bucket, Launch())
        counted = cuda.backend._C.take_counters()
        launches.add(counted["launches"])
        moved = counted["bytes_loaded"] + counted["bytes_stored"]
        found[name] = moved / bucket.entries[0].param.numel()
    (number,) = launches
    return {"launches": number, "bytes_per_parameter": found}


def visit_limit() -> int:
    """Return how many elements a tensor may have for one block to do all of Adafactor's stages.

    To a power of two, of square matrices; 0 where there are no such tensors.
    """
    limit = 0
    for bits in range(6, 19):
        kind = Kind("adafactor", "bfloat16", "bfloat16", "split", None)
        bucket = bucket_of(kind, [(1 << bits // 2, 1 << bits - bits // 2)])
        steps = traces(bucket)
        if any(len(s.of(bucket.entries[0].grad)) for s in steps if s.name != "finalise"):
            break
        limit = 1 << bits
    return limit
