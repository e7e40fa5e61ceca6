"""What a step costs that is counted and not timed: bytes moved, and launches."""

from __future__ import annotations

import importlib
import re

import torch

from bench.setups import DTYPES, OURS
from bench.subject import Subject

_LAUNCH = re.compile(r"cu(da)?Launch(Cooperative)?Kernel")


def traffic_bytes(subject: Subject) -> float | None:
    """Return the bytes per parameter that a step reads and writes, where they are known.

    Those of this package's kernels were counted; one-pass peers follow from their state.
    """
    if subject.setup.source != OURS:
        if not subject.setup.one_pass:
            return None
        stored = subject.param_bytes() + subject.state_bytes()
        return (2 * stored + subject.param_bytes()) / subject.parameters
    tables = _tables()
    if tables is None or subject.backend == "eager":
        return None
    group = subject.optimizer.param_groups[0]
    dtype = DTYPES[subject.dtype]
    return tables.bytes_per_parameter(
        subject.setup.op,
        dtype,
        dtype,
        group["low_precision"],
        group["state_dtype"],
        amsgrad=group.get("amsgrad", False),
        beta1=group.get("beta1") is not None,
        scale_parameter=group.get("scale_parameter", False),
        clipped=subject.optimizer.max_grad_norm is not None,
    )


def launches(subject: Subject) -> int | None:
    """Return how many kernels a step launches: traced on a GPU, from the counts elsewhere."""
    if subject.device.type == "cuda":
        return _traced_launches(subject)
    tables = _tables()
    if subject.setup.source != OURS or tables is None or subject.backend == "eager":
        return None
    return tables.launches(subject.setup.op)


def _traced_launches(subject: Subject) -> int | None:
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize(subject.device)
    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            subject.step()
            torch.cuda.synchronize(subject.device)
    except RuntimeError:  # another tool holds the device's tracing interface
        return None
    counted = sum(e.count for e in trace.key_averages() if _LAUNCH.match(e.key))
    return counted or None  # no step launches nothing: tracing is not permitted here


def _tables():
    try:
        return importlib.import_module("bench.traffic")
    except ModuleNotFoundError:
        return None
