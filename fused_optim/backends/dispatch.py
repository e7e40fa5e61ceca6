"""Chooses the backend of each bucket, and says why a faster one was not chosen."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from types import ModuleType

import torch

from fused_optim.ops import GRADIENT_SUMS

BACKENDS = ("cuda", "triton", "cpu", "eager")
"""Backends from fastest to slowest; ``auto`` takes the first that works for a device."""

ON_DEVICES = tuple(name for name in BACKENDS if name != "cpu")
"""The backends that may update tensors of other devices than the CPU."""

ENVIRONMENT_VARIABLE = "FUSED_OPTIM_BACKEND"
"""Names the backend that ``backend="auto"`` stands for, for a whole process."""

TEST_VARIABLE = "FUSED_OPTIM_TEST_BACKEND"
"""For tests alone: the backends that may take CPU tensors, such as ``eager`` or ``triton,cuda``.

``backend="auto"`` sends CPU tensors to the first. ``triton`` needs Triton's interpreter
(``TRITON_INTERPRET=1``), ``cuda`` the kernels compiled for the host.
"""

_MODULES = {
    "cuda": "fused_optim.backends.cuda",
    "triton": "fused_optim.triton_kernels",
    "cpu": "fused_optim.backends.cpu",
    "eager": "fused_optim.backends.eager",
}

_given_up: dict[str, str] = {}  # backend to reason


def resolve(requested: str) -> tuple[str, str]:
    """Return the backend that is asked for, ``"auto"`` if none is, and the setting that names it.

    The setting is ``"backend"``, or `ENVIRONMENT_VARIABLE` where ``requested`` is ``"auto"``. A
    variable that is empty counts as not set.

    Raises:
        ValueError: what is asked for is no backend.
    """
    name, setting = requested, "backend"
    if requested == "auto":
        name, setting = os.environ.get(ENVIRONMENT_VARIABLE) or "auto", ENVIRONMENT_VARIABLE
    if name not in ("auto", *BACKENDS):
        raise ValueError(
            f"{setting}={name!r} is unknown; use 'auto' or one of {', '.join(BACKENDS)}"
        )
    return name, setting


def check_backend(requested: str, op: str, device: torch.device | None = None) -> None:
    """Refuse a backend name that is unknown or can't be had on this machine.

    A name in `ENVIRONMENT_VARIABLE` need only be known: CPU tensors run where it can't be had.

    Raises:
        ValueError: ``requested`` is no backend, or ``"auto"`` while the variable names none.
        RuntimeError: it is one, but not available here; the message gives the reason.
    """
    name, setting = resolve(requested)
    if requested == "cpu":  # eager has the ops that it lacks
        op = GRADIENT_SUMS
    if requested != "auto":
        _check_available(name, setting, op, device)


def choose(requested: str, op: str, device: torch.device, dtype: torch.dtype | None = None) -> str:
    """Return the backend that runs ``op`` on tensors of ``device`` and ``dtype``.

    Eager updates all float64 parameters. CPU tensors go to the CPU kernels, or to eager where it is
    named or there are no such kernels, whichever GPU backend is named; `TEST_VARIABLE` may name
    others for them. Where ``"cpu"`` is named, eager updates the tensors of other devices.

    Raises:
        ValueError: ``requested``, or `ENVIRONMENT_VARIABLE` for ``"auto"``, names no backend.
        RuntimeError: it names one that is not available here.
    """
    name, setting = resolve(requested)
    if dtype is torch.float64:
        return "eager"
    if device.type == "cpu":
        return _choose_on_cpu(name, op)
    if name == "auto":
        return next(fast for fast in ON_DEVICES if why_not(fast, op, device) is None)
    if name in _given_up or name == "cpu":
        return "eager"
    _check_available(name, setting, op, device)
    return name


def _choose_on_cpu(name: str, op: str) -> str:
    tested = _tested()
    if tested:
        name = tested[0] if name == "auto" else name if name in tested else "eager"
    elif name != "eager":
        name = "cpu"
    return "eager" if name == "cpu" and why_not(name, op) is not None else name


def give_up(backend: str, reason: object) -> None:
    """Use eager instead of ``backend`` from now on, and say so once."""
    if backend not in _given_up:
        _given_up[backend] = f"it failed before: {reason}"
        warnings.warn(
            f"the {backend} backend failed and nothing was changed ({reason}); this and later "
            "steps run on the eager backend, which is slower; `python -m fused_optim` says what is "
            "here, and backend='eager' keeps this warning away",
            RuntimeWarning,
            stacklevel=4,
        )


def load(backend: str) -> ModuleType:
    """Import and return the module that holds a backend's ops."""
    return importlib.import_module(_MODULES[backend])


def why_not(backend: str, op: str, device: torch.device | None = None) -> str | None:
    """Return why ``backend`` can't run ``op`` on this machine, or None if it can.

    Args:
        backend: one of `BACKENDS`.
        op: the op's name.
        device: a CUDA device; torch's current one if None.
    """
    if backend == "eager":
        return None
    if backend in _given_up:
        return _given_up[backend]
    tested = backend in _tested()
    reason = _why_not(backend, op, tested)
    if reason is None and backend == "cuda" and not tested:
        index = None if device is None else device.index
        reason = _why_not_on(torch.cuda.current_device() if index is None else index)
    return reason


def _check_available(name: str, setting: str, op: str, device: torch.device | None) -> None:
    reason = why_not(name, op, device)
    if reason is not None:
        raise RuntimeError(
            f"{setting}={name!r} can't run {op} here: {reason}. "
            f"Use {setting}='auto' for the fastest that works."
        )


@functools.cache
def _why_not_on(device: int) -> str | None:
    """Return why the CUDA kernels can't run on a device, or None. A warning repeats a reason."""
    reason = load("cuda").why_not(device)
    if reason is not None:
        warnings.warn(
            f"the cuda backend can't run here, and a slower one does: {reason}; "
            "`python -m fused_optim` says which command mends it",
            RuntimeWarning,
            stacklevel=4,
        )
    return reason


@functools.cache
def _why_not(backend: str, op: str, tested: bool) -> str | None:
    if importlib.util.find_spec(_MODULES[backend]) is None:
        return f"this installation of fused_optim has no {backend} kernels"
    if not (tested or backend == "cpu" or torch.cuda.is_available() or _has_xpu(backend)):
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


def _tested() -> list[str]:
    named = os.environ.get(TEST_VARIABLE)
    return named.split(",") if named else []


def _has_xpu(backend: str) -> bool:
    return backend == "triton" and hasattr(torch, "xpu") and torch.xpu.is_available()
