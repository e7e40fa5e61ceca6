"""Launches kernels, and handles errors that come before a kernel runs.

note: [broken cache] Triton keeps compiled kernels on disk. Where that folder can't be written to,
or another process removes or replaces files in it at the same time, a launch raises an OSError
before anything ran. The launch is tried once more with a folder of this process's own.
"""

import atexit
import contextlib
import os
import shutil
import tempfile

import torch
import triton

from .compiling import announced

launches = 0
"""Kernels launched so far; tests count them."""

_OPTIONS = {"enable_fp_fusion": False}
_launched: set = set()  # kernels with their constants and devices, compiled already


def arguments_of(tables, name: str) -> tuple:
    """Return the first arguments, in order, of any kernel over the map of this name."""
    entries = tables.maps[name]
    return (
        *(tables.records, tables.rows, entries, len(entries)),
        *(tables.grad_scale, tables.found_inf, tables.clip, tables.clip_stride),
        *(tables.seed_low, tables.seed_high),
    )


def interpreted(kernel) -> bool:
    """Return whether a kernel runs on the CPU, under Triton's interpreter."""
    return not isinstance(kernel, triton.JITFunction)


def launch(kernel, programs: int, *args, device: torch.device, **constants) -> None:
    """Run ``programs`` programs of a kernel on the device's current stream.

    Raises:
        RuntimeError: the tensors are on the CPU, and Triton is not interpreting.
        OSError: Triton's cache is unusable, and so is a private one. Nothing ran.
    """
    global launches
    if programs == 0:
        return
    kind = (kernel, device, *constants.values())
    with contextlib.nullcontext() if kind in _launched else announced():
        _on_device(
            kernel, device, lambda options: kernel[(programs,)](*args, **constants, **options)
        )
    _launched.add(kind)
    launches += 1


def compile_ahead(kernel, *args, device: torch.device, **constants) -> None:
    """Compile a kernel as `launch` would, and raise as it does, so that its launch can't fail."""
    if not interpreted(kernel):
        options = {**constants, "grid": (1,)}
        with announced():
            _on_device(kernel, device, lambda more: kernel.warmup(*args, **options, **more))


def _on_device(kernel, device: torch.device, run) -> None:
    if interpreted(kernel):
        import numpy

        with numpy.errstate(all="ignore"):  # numpy warns of infinities, which a GPU does not
            run({})
        return
    if device.type == "cpu":
        raise RuntimeError(
            "the triton backend was given CPU tensors, which only Triton's interpreter takes; set "
            "TRITON_INTERPRET=1 before Python starts, or use backend='auto'"
        )
    with _device_guard(device):
        try:
            run(_OPTIONS)
        except OSError:  # note: [broken cache]
            _use_private_cache()
            run(_OPTIONS)


def _use_private_cache() -> None:
    folder = tempfile.mkdtemp(prefix="fused_optim-triton-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["TRITON_CACHE_DIR"] = folder


def _device_guard(device: torch.device):
    return (torch.xpu if device.type == "xpu" else torch.cuda).device(device)
