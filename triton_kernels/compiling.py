"""Says once in a process that Triton compiles kernels, where that keeps a first step waiting."""

import contextlib
import os
import sys
import threading
import time

VARIABLE = "FUSED_OPTIM_QUIET"
"""Any value but 0 keeps this file from printing."""

PATIENCE = 5.0
"""Seconds of compiling, all kernels together, that pass in silence."""

_waited = 0.0
_lock = threading.Lock()
_said = False


@contextlib.contextmanager
def announced():
    """Watch what may compile a kernel, and print one line if that takes long."""
    global _waited
    if _said or os.environ.get(VARIABLE, "0") not in ("", "0"):
        yield
        return
    timer = threading.Timer(max(0.0, PATIENCE - _waited), _say)
    timer.daemon = True
    timer.start()
    begun = time.perf_counter()
    try:
        yield
    finally:
        timer.cancel()
        _waited += time.perf_counter() - begun


def _say() -> None:
    global _said
    with _lock:
        if _said:
            return
        _said = True
    print(
        "fused_optim: Triton is compiling the optimizer's kernels, which has taken over "
        f"{PATIENCE:.3g} s and happens once for each dtype and precision mode; later processes "
        f"find them in Triton's cache. {VARIABLE}=1 keeps this line away.",
        file=sys.stderr,
        flush=True,
    )
