"""Bytes that an optimizer keeps and takes, each measured in a process of its own.

State is counted from the tensors that the optimizer holds. What a step takes and gives back is, on
a GPU, the allocator's maximum during a step less what was allocated before; on a CPU the same from
the profiler's record of every allocation. (The process's peak resident size gave the same for
large temporaries, but does not see those that fit what the heap keeps.)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys

import torch

from bench import ROOT
from bench.results import Memory
from bench.setups import SETUPS
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


def measure_isolated(
    setup: str, shapes: str, dtype: str, device: str, backend: str | None, timeout: float
) -> Memory:
    """Return the memory of an optimizer, measured in a new process.

    Raises:
        RuntimeError: the process failed; the message is the last line that it wrote.
        subprocess.TimeoutExpired: it took longer than ``timeout`` seconds.
    """
    command = [sys.executable, "-m", "bench.memory", setup, shapes, dtype, device]
    command += [] if backend is None else ["--backend", backend]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(lines[-1])
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


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


def main(arguments: list[str] | None = None) -> int:
    """Measure one setup and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.memory")
    for name in ("setup", "shapes", "dtype", "device"):
        parser.add_argument(name)
    parser.add_argument("--backend")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    subject = Subject(SETUPS[options.setup], options.shapes, options.dtype, device, options.backend)
    print(json.dumps(dataclasses.asdict(measure(subject, options.shapes))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
