"""Bytes that an optimizer keeps, and that a step takes.

State is counted from the tensors that the optimizer holds. What a step takes and gives back is, on
a GPU, the allocator's maximum during a step less what was allocated before; on a CPU the same from
the profiler's record of every allocation. (The process's peak resident size gave the same for
large temporaries, but does not see those that fit what the heap keeps.)
"""

from __future__ import annotations

import torch

from bench.results import Memory
from bench.subject import Subject

_WARM_UP_STEPS = 3


def measure(subject: Subject, shapes: str) -> Memory:
    """Return the memory of an optimizer; to be called in a process that does nothing else."""
    for _ in range(_WARM_UP_STEPS):
        subject.step()
    cuda = subject.device.type == "cuda"
    state, count = subject.state_bytes(), subject.parameters
    return Memory(
        optimizer=subject.setup.name,
        source=subject.setup.source,
        shapes=shapes,
        dtype=subject.dtype,
        parameters=count,
        state_bytes_per_parameter=round(state / count, 4),
        bytes_per_parameter=round((state + subject.param_bytes()) / count, 4),
        transient_bytes=_cuda_transient(subject) if cuda else _cpu_transient(subject),
    )


def _cuda_transient(subject: Subject) -> int:
    torch.cuda.synchronize(subject.device)
    torch.cuda.reset_peak_memory_stats(subject.device)
    before = torch.cuda.memory_allocated(subject.device)
    subject.step()
    torch.cuda.synchronize(subject.device)
    return torch.cuda.max_memory_allocated(subject.device) - before


def _cpu_transient(subject: Subject) -> int | None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        subject.step()
    # Private to torch, so optional: the public tables add allocations up and have no maximum.
    kineto = getattr(trace.profiler, "kineto_results", None)
    if kineto is None:
        return None
    events = [e for e in kineto.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
