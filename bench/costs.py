"""What a step costs that is counted and not timed: bytes moved, and launches."""

import re
from dataclasses import replace

import torch

from bench import traffic
from bench.setups import DTYPES, OURS
from bench.subject import Subject
from fused_optim import precision
from fused_optim.ops import FAMILIES

_MOST_TRACED = 2000
"""Tensors of a peer's step that is traced: of loops over more, torch takes minutes to make a table,
and no goal speaks of what peers launch."""

_LAUNCH = re.compile(r"cu(da)?Launch(Cooperative)?Kernel")


def traffic_bytes(subject: Subject) -> float | None:
    """Return the bytes per parameter that a step reads and writes, where they are known.

    Those of this package's kernels were counted; one-pass peers follow from their state.
    """
    if subject.setup.source == OURS:
        return None if subject.backend == "eager" else _counted_bytes(subject)
    if not subject.setup.one_pass:
        return None
    stored = subject.param_bytes() + subject.state_bytes()
    return (2 * stored + subject.param_bytes()) / subject.parameters


def launches(subject: Subject) -> int | None:
    """Return how many kernels a step launches: traced on a GPU, from the counts elsewhere."""
    ours = subject.setup.source == OURS
    if subject.device.type == "cuda":
        return _traced_launches(subject) if ours or subject.tensors <= _MOST_TRACED else None
    if not ours or subject.backend in ("cpu", "eager"):
        return None
    return traffic.launches(subject.setup.op, clip=subject.optimizer.max_grad_norm is not None)


def kind_of(optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> traffic.Kind:
    """Return what one of this package's optimizers does with matrices of a dtype, as counted.

    Gradients have the parameters' dtype. Whether it clips to a norm is no part of it.
    """
    group = optimizer.settings(optimizer.param_groups[0])
    return traffic.kind_of(
        optimizer._family,
        dtype,
        mode=precision.resolve_mode(group["low_precision"], dtype),
        state_dtype=precision.resolve_state_dtype(group["state_dtype"], dtype)[0],
        amsgrad=bool(group.get("amsgrad")),
        beta1=group.get("beta1") is not None,
        # torch's Adafactor always does, transformers' on request.
        scale_parameter=optimizer._family == "adafactor" and group.get("scale_parameter", True),
    )


def _counted_bytes(subject: Subject) -> float | None:
    """Return the mean over the list, as vectors and matrices of Adafactor differ."""
    kind = kind_of(subject.optimizer, DTYPES[subject.dtype])
    clips = subject.optimizer.max_grad_norm is not None
    total = traffic.clip_bytes(kind) * subject.parameters if clips else 0.0
    for param in subject.params:
        moved = traffic.moved(
            replace(kind, factored=FAMILIES[kind.op].elementwise or param.dim() > 1)
        )
        if moved is None:
            return None
        total += moved * param.numel()
    return total / subject.parameters


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
