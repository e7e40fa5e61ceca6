"""Worker scripts in several processes that form one process group, over gloo."""

from __future__ import annotations

import datetime
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

LETTING_GO_S = 0.25
"""How long a process waits before it ends, after its last collective.

A thread of gloo lets go of a collective's tensors after the collective has ended, and needs
Python's lock for that. Where it gets the lock only while Python ends, the thread ends inside a
destructor, and the process is aborted: "terminate called without an active exception".
"""

needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="needs torch.distributed with gloo",
)


def results_of(worker: Path, folder: Path, *arguments: str, world_size: int = 2) -> list[Any]:
    """Run a worker in ``world_size`` processes and return what each passed to `finish`."""
    commands = [
        [sys.executable, str(worker), str(rank), str(world_size), str(folder), *arguments]
        for rank in range(world_size)
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(command, cwd=folder, **pipes) for command in commands]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return [torch.load(_file(folder, rank), weights_only=True) for rank in range(world_size)]


def printed_by(program: Path, folder: Path, *arguments: str, count: int = 0) -> str:
    """Run a program on the CPU, under torchrun in ``count`` processes, and return what it printed.

    With a count of 0 it runs alone.
    """
    launcher = []
    if count:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        launcher.append(__file__)
    done = subprocess.run(
        [sys.executable, *launcher, str(program), *arguments],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def join() -> tuple[int, list[str]]:
    """In a worker: join the process group; return the rank and the worker's own arguments."""
    rank, world_size, folder, *arguments = sys.argv[1:]
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{Path(folder) / 'rendezvous'}",
        rank=int(rank),
        world_size=int(world_size),
        timeout=datetime.timedelta(seconds=120),
    )
    return int(rank), arguments


def finish(result: Any) -> None:
    """In a worker: save its result, of tensors and plain values, and leave the process group."""
    rank, folder = int(sys.argv[1]), Path(sys.argv[3])
    torch.save(result, _file(folder, rank))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    time.sleep(LETTING_GO_S)


def _file(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.pt"


if __name__ == "__main__":  # as `printed_by` starts it: a program, then its arguments
    sys.argv[:] = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
    time.sleep(LETTING_GO_S)
