"""Measures each optimizer's memory in a process of its own, so that none sees another's leftovers.

Those processes are forked from one that has imported torch and done nothing with it, as importing
takes longer than measuring.
"""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import subprocess
import sys
from typing import IO, Any

import torch

from bench import ROOT, memory
from bench.results import Memory
from bench.setups import SETUPS
from bench.subject import Subject


class Isolation:
    """Where processes are forked from; it starts with the first measurement."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def measure(
        self, setup: str, shapes: str, dtype: str, device: str, backend: str | None, timeout: float
    ) -> Memory:
        """Return the memory of a setup, measured in a new process.

        Raises:
            RuntimeError: it failed there; the message says how.
            TimeoutError: it took longer than ``timeout`` seconds.
        """
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "bench.isolation"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        request = {"setup": setup, "shapes": shapes, "dtype": dtype}
        request |= {"device": device, "backend": backend}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        reply = json.loads(self._line(timeout))
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return Memory(**reply)

    def close(self) -> None:
        """End the process that others were forked from."""
        if self._server is not None:
            server, self._server = self._server, None
            server.kill()
            server.communicate()

    def _line(self, timeout: float) -> str:
        with selectors.DefaultSelector() as selector:
            selector.register(self._server.stdout, selectors.EVENT_READ)
            if not selector.select(timeout):
                self._kill_all()
                raise TimeoutError(f"no answer within {timeout:.0f} s")
        line = self._server.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError("the process that measures memory ended; is torch importable there?")
        return line

    def _kill_all(self) -> None:
        os.killpg(self._server.pid, 9)  # the one that measures too
        self.close()


def serve(requests: IO[str], replies: IO[str]) -> None:
    """Answer each line of ``requests`` from a process of its own."""
    for line in requests:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                replies.write(json.dumps(_answer(json.loads(line))) + "\n")
                replies.flush()
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if status:
            how = os.waitstatus_to_exitcode(status)
            replies.write(json.dumps({"error": f"the process ended with status {how}"}) + "\n")
            replies.flush()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    shapes, dtype = request["shapes"], request["dtype"]
    try:
        device = torch.device(request["device"])
        subject = Subject(SETUPS[request["setup"]], shapes, dtype, device, request["backend"])
        return dataclasses.asdict(memory.measure(subject, shapes))
    except Exception as error:  # whatever a peer does
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


if __name__ == "__main__":
    # What peers print must not be taken for a reply.
    with os.fdopen(os.dup(1), "w") as own_stdout:
        os.dup2(2, 1)
        serve(sys.stdin, own_stdout)
