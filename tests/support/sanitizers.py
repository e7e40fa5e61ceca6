"""Runs sanitizer_worker.py in a process that the sanitizers of the host's compiler watch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import host_module

WORKER = Path(__file__).with_name("sanitizer_worker.py")


def library(name: str) -> str:
    """Return the path of one of the compiler's own libraries; its name, if there is none."""
    command = [host_module.COMPILER, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def available() -> bool:
    return os.path.isabs(library("libasan.so"))


def run_worker(*arguments: str, **variables: str) -> None:
    """Run the worker, and pass on what the sanitizers say."""
    watched = {
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    done = subprocess.run(
        [sys.executable, str(WORKER), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **watched},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "clean" in done.stderr
