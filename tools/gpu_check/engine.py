"""Runs the stages of gpu-check one after the other, each as a process with its own time limit.

The machine may be taken away at any moment, with every process killed. So the output of a stage
goes straight to the log, and the record of all stages is rewritten while a stage runs.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import ROOT

TICK_S = 5.0  # how often a running stage's record is brought up to date
GRACE_S = 10.0  # from asking a stage to end, as Ctrl-C does, to killing it

_RUN_MODULE = (
    "import runpy, sys; del sys.path[0]; del sys.argv[0]; "
    "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)

# A stage's process leads a group, so that it can be killed together with all that it starts. It
# dies when this process does (1 is PR_SET_PDEATHSIG); in a new session it would live on. SIGINT is
# set to its default, as a shell's background jobs are started with SIGINT ignored.
_LEAD_A_GROUP = (
    "import ctypes, os, signal, sys; os.setpgrp(); signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, 9); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


class Skip(Exception):
    """A stage can't run here; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit status is negative for a signal, None if nothing ended it."""

    status: str  # "passed" (exit status 0), "failed" or "timeout"
    seconds: float
    returncode: int | None
    output: str

    @property
    def reason(self) -> str:
        """Why the process has not passed: the last line of its output that is not empty."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        return lines[-1][:300] if lines and self.status != "passed" else ""


def module(python: str, name: str, *arguments: object) -> list[str]:
    """Return the command that runs a module as ``python -m`` does, without the checkout's folder.

    ``-m`` would put the checkout before the build that is to be tested.
    """
    return [python, "-c", _RUN_MODULE, name, *map(str, arguments)]


def share(left_s: float | None, plan: Sequence[tuple[float, float]]) -> float:
    """Return how many seconds the next stage may take.

    The stage gets its expected time, and all time that the stages after it are not expected to
    need. The time of the last stage, which writes the report, is reserved before any other.

    Args:
        left_s: the seconds that are left for all stages, or None for no limit.
        plan: the seconds that each stage is expected to take, and may take at most.
    """
    expected, most = plan[0]
    if left_s is None:
        return most
    spare = max(0.0, left_s - sum(seconds for seconds, _ in plan))
    kept = plan[-1][0] if len(plan) > 1 else 0.0
    return max(0.0, min(most, left_s - kept, expected + spare))


def run(
    command: Sequence[str],
    log: Path,
    limit_s: float,
    environment: dict[str, str],
    on_tick: Callable[[float], None] = lambda seconds: None,
) -> Outcome:
    """Run a command until it ends or its time is up, and return how it ended.

    Its output is appended to the log, and ``on_tick`` is called every few seconds. If an exception
    is raised meanwhile, such as by a signal, the command and all that it started are killed first.
    """
    begin, offset = time.monotonic(), log.stat().st_size if log.exists() else 0
    leading = [sys.executable, "-S", "-c", _LEAD_A_GROUP, *command]
    with open(log, "ab") as out:
        files = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(leading, env=environment, cwd=ROOT, **files)
    in_time = False
    try:
        while not in_time and (left := begin + limit_s - time.monotonic()) > 0:
            try:
                process.wait(min(TICK_S, left))
                in_time = True
            except subprocess.TimeoutExpired:
                on_tick(time.monotonic() - begin)
    finally:
        _end_group(process)
    status = "timeout" if not in_time else "failed" if process.returncode else "passed"
    with open(log, "rb") as file:
        file.seek(offset)
        output = file.read().decode("utf-8", "replace")
    return Outcome(status, time.monotonic() - begin, process.returncode, output)


def _end_group(process: subprocess.Popen) -> None:
    """Kill the process, where it still runs, and all that it has started.

    The process is interrupted first, so that pytest can record which tests have ended.
    """
    for number, wait_s in ((signal.SIGINT, GRACE_S), (signal.SIGKILL, 2 * GRACE_S)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            process.send_signal(number)  # the process may not lead a group yet
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
