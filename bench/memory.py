"""Bytes that an optimizer keeps, and that a step takes, each measured in a process of its own.

State is counted from the tensors that the optimizer holds. What a step takes and gives back is, on
a GPU, the allocator's maximum during a step less what was allocated before; on a CPU the same from
the profiler's record of every allocation. (The process's peak resident size gave the same for
large temporaries, but does not see those that fit what the heap keeps.)
"""

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

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
        *(subject.setup.name, subject.setup.source, shapes, subject.dtype, count),
        state_bytes_per_parameter=round(state / count, 4),
        bytes_per_parameter=round((state + subject.param_bytes()) / count, 4),
        transient_bytes=_cuda_transient(subject) if cuda else cpu_transient(subject.step),
    )


def isolated(setup: str, where: tuple[str, str, str, str | None], timeout: float) -> Memory:
    """Return the memory of a setup, measured in a new process.

    ``where`` names shapes, dtype, device and backend. Processes are forked from a server that has
    imported torch and done nothing with it, as importing takes longer than measuring. What fails
    there is a RuntimeError, and a TimeoutError what takes longer than ``timeout`` seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, setup, where))
    with mock.patch.object(sys, "path", [*sys.path, str(ROOT)]):  # by which it finds this module
        process.start()
    sender.close()
    try:
        if not receiver.poll(timeout):
            raise TimeoutError(f"no answer within {timeout:.0f} s")
        found = receiver.recv()
    except EOFError:
        process.join()
        found = f"the process ended with status {process.exitcode}"
    finally:
        process.kill()
        process.join()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def _answer(sender: Connection, setup: str, where: tuple[str, str, str, str | None]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # peers warn of what is theirs
    os.dup2(2, 1)
    shapes, dtype, device, backend = where
    try:
        subject = Subject(SETUPS[setup], shapes, dtype, torch.device(device), backend)
        found: Any = measure(subject, shapes)
    except Exception as error:  # whatever a peer does
        found = f"{type(error).__name__}: {error}".splitlines()[0]
    sender.send(found)


def _cuda_transient(subject: Subject) -> int:
    torch.cuda.synchronize(subject.device)
    torch.cuda.reset_peak_memory_stats(subject.device)
    before = torch.cuda.memory_allocated(subject.device)
    subject.step()
    torch.cuda.synchronize(subject.device)
    return torch.cuda.max_memory_allocated(subject.device) - before


def cpu_transient(step: Any) -> int | None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
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
