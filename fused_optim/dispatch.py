"""Choosing the backend of each bucket, and saying why a faster one was not chosen."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from types import ModuleType

import torch

BACKENDS = ("cuda", "triton", "eager")
"""Backends from fastest to slowest; ``auto`` takes the first that works."""

ENVIRONMENT_VARIABLE = "FUSED_OPTIM_BACKEND"
"""Names the backend that ``backend="auto"`` stands for, for a whole process."""

_MODULES = {
    "cuda": "fused_optim.cuda",
    "triton": "fused_optim.triton_kernels",
    "eager": "fused_optim.eager",
}


def check_backend(requested: str, op: str) -> None:
    """Refuse a backend name that is unknown or can't be had on this machine.

    Raises:
        ValueError: ``requested`` is no backend.
        RuntimeError: it is one, but not available here; the message gives the reason.
    """
    if requested not in ("auto", *BACKENDS):
        raise ValueError(
            f"backend={requested!r} is unknown; use 'auto' or one of {', '.join(BACKENDS)}"
        )
    if requested == "auto":
        return
    reason = why_not(requested, op)
    if reason is not None:
        raise RuntimeError(
            f"backend={requested!r} can't run {op} here: {reason}. "
            "Use backend='auto' for the fastest that works."
        )


def choose(requested: str, op: str, device: torch.device) -> str:
    """Return the backend that runs ``op`` on ``device``; CPU tensors always use eager."""
    if device.type == "cpu":
        return "eager"
    if requested == "auto":
        requested = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if requested != "auto":
        check_backend(requested, op)
        return requested
    return next(name for name in BACKENDS if why_not(name, op) is None)


def load(backend: str) -> ModuleType:
    """Import and return the module that holds a backend's ops."""
    return importlib.import_module(_MODULES[backend])


@functools.cache
def why_not(backend: str, op: str) -> str | None:
    """Return why ``backend`` can't run ``op`` on this machine, or None if it can."""
    if backend == "eager":
        return None
    if importlib.util.find_spec(_MODULES[backend]) is None:
        return f"this installation of fused_optim has no {backend} kernels"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    try:
        module = load(backend)
    except (ImportError, OSError, RuntimeError) as error:
        return f"its module does not import: {error}"
    if not hasattr(module, op):
        return f"this version of fused_optim has no {backend} kernel for {op}"
    return None
