"""The CUDA backend: the ops of docs/kernel_contract.md, launched through the extension `_C`.

The extension sees addresses, sizes and a stream; it knows neither torch nor this package. It has no
kernels where the installation found no CUDA compiler, and importing this module then fails.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

import torch

from fused_optim.backends.interface import Launch, Needs, Shape, Tables, of_shape
from fused_optim.ops import FAMILIES
from fused_optim.precision import DTYPE_TAGS

__all__ = [
    "adafactor_apply_",
    "adafactor_finalise_",
    "adafactor_statistics",
    "adafactor_update_sums",
    "adamw_",
    "grad_square_sums",
    "lion_",
    "needs",
]

_MODES = {"none": 0, "nearest": 1, "stochastic": 2, "kahan": 3, "split": 4, "master": 5}


def _extension() -> ModuleType:
    """Return `_C`, or in tests the module that runs its kernels on CPU tensors."""
    path = os.environ.get("FUSED_OPTIM_TEST_HOST_MODULE")
    if os.environ.get("FUSED_OPTIM_TEST_BACKEND") == "cuda" and path:
        name = "fused_optim_host._C"  # of its own: pybind11 keeps one module for each name
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if importlib.util.find_spec("fused_optim._C") is None:
        raise ImportError(
            "this installation of fused_optim has no CUDA kernels; installing it where nvcc is on "
            "PATH, in CUDA_HOME or from PyPI (nvidia-cuda-nvcc) builds them"
        )
    from fused_optim import _C

    return _C


_C = _extension()


def _chunks(shape: Shape) -> int:
    return -(-shape.numel // _C.CHUNK_SIZE)


_tiles, _lines = of_shape(_C.adafactor_tiles), of_shape(_C.adafactor_lines)
_scratch = of_shape(_C.adafactor_scratch)


def _visits(shape: Shape) -> int:
    """Return 1 for a small tensor, whose whole step the finalising op makes, else 0."""
    visited = _C.adafactor_visited(shape.batch, shape.rows, shape.cols)
    return int(visited and not shape.sharded)


def _large_tiles(shape: Shape) -> int:
    return 0 if _visits(shape) else _tiles(shape)


def _large_lines(shape: Shape) -> int:
    return 0 if _visits(shape) else _lines(shape)


_ELEMENTWISE = Needs({"chunks": _chunks})
_ALL = Needs({"tiles": _tiles, "lines": _lines}, _scratch)
_LARGE = Needs({"tiles": _large_tiles, "lines": _large_lines}, _scratch)
_NEEDS = {
    **{op: _ELEMENTWISE for family in FAMILIES.values() if family.elementwise for op in family.ops},
    "grad_square_sums": _ELEMENTWISE,
    "adafactor_finalise_": Needs({"lines": _large_lines, "visits": _visits}, _scratch),
    "adafactor_update_sums": Needs({"tiles": _large_tiles}, _scratch),
    "adafactor_apply_": Needs({"tiles": _large_tiles}, _scratch),
}


def needs(op: str, launch: Launch) -> Needs:
    """Return the maps and the scratch memory that an op reads."""
    if op == "adafactor_statistics":
        return _ALL if launch.sums_wanted else _LARGE
    return _NEEDS[op]


def adamw_(tables: Tables, launch: Launch) -> None:
    """Run one AdamW step on every tensor of the bucket, in one launch."""
    _C.adamw_(_launch(tables, "chunks"), tables.key.amsgrad)


def lion_(tables: Tables, launch: Launch) -> None:
    """Run one Lion step on every tensor of the bucket, in one launch."""
    _C.lion_(_launch(tables, "chunks"))


def grad_square_sums(tables: Tables, launch: Launch) -> torch.Tensor:
    """Return ``[entries]``: the sum of squares of each gradient, prepared but not yet clipped."""
    sums = _new(tables, len(tables.records))
    partials = _new(tables, len(tables.maps["chunks"]))
    clamps = FAMILIES[tables.key.op].clamps
    _C.grad_square_sums(_launch(tables, "chunks"), clamps, partials.data_ptr(), sums.data_ptr())
    return sums


def adafactor_statistics(tables: Tables, launch: Launch) -> torch.Tensor | None:
    """Run F1 and F2 in two launches: sums of squares of gradients and parameters.

    Returns:
        ``[entries]``: the sum of squares of each gradient, not clipped; None unless it is wanted.
    """
    sums = None
    if launch.sums_wanted:
        sums = _new(tables, len(tables.records))
        if tables.some_empty:
            sums.zero_()
    _C.adafactor_statistics(
        _launch(tables, "tiles"),
        *_addressed(tables.maps["lines"]),
        tables.scratch.data_ptr(),
        0 if sums is None else sums.data_ptr(),
    )
    return sums


def adafactor_finalise_(tables: Tables, launch: Launch) -> None:
    """Run F3 to F5: advance the statistics and find each tensor's step size before clipping.

    For small tensors it also does all that is left of the step.
    """
    _C.adafactor_finalise_(
        _launch(tables, "lines"),
        *_addressed(tables.maps["visits"]),
        launch.sums_wanted,
        tables.scratch.data_ptr(),
    )


def adafactor_update_sums(tables: Tables, launch: Launch) -> None:
    """Run F6: the sum of squares of each update, before it is scaled."""
    _C.adafactor_update_sums(_launch(tables, "tiles"), tables.scratch.data_ptr())


def adafactor_apply_(tables: Tables, launch: Launch) -> None:
    """Run F7 to F10: scale the updates and write the parameters."""
    _C.adafactor_apply_(_launch(tables, "tiles"), tables.scratch.data_ptr())


def _addressed(items: torch.Tensor) -> tuple[int, int]:
    return items.data_ptr(), len(items)


def _new(tables: Tables, numel: int) -> torch.Tensor:
    return torch.empty(numel, dtype=torch.float32, device=tables.key.device)


def _launch(tables: Tables, name: str) -> Any:
    """Return the extension's view of a launch over the map of this name.

    The tables must outlive the call that it is given to.
    """
    key, items = tables.key, tables.maps[name]
    device, stream = 0, 0
    if key.device.type == "cuda":
        device = torch.cuda.current_device() if key.device.index is None else key.device.index
        stream = torch.cuda.current_stream(device).cuda_stream
    return _C.Launch(
        device=device,
        stream=stream,
        dtype=DTYPE_TAGS[key.dtype],
        mode=_MODES[key.mode],
        tensors=len(tables.records),
        records=tables.records.data_ptr(),
        rows=tables.rows.data_ptr(),
        items=items.data_ptr(),
        num_items=len(items),
        grad_scale=tables.grad_scale.data_ptr(),
        found_inf=tables.found_inf.data_ptr(),
        clip=tables.clip.data_ptr(),
        clip_stride=tables.clip_stride,
        seed_low=tables.seed_low,
        seed_high=tables.seed_high,
    )


@functools.cache
def why_not(device: int) -> str | None:
    """Return why the kernels can't run on a CUDA device, or None if they can.

    The driver may be older than the runtime that was linked, or no kernel was compiled for the
    device's architecture.
    """
    try:
        _C.check_device(device)
    except RuntimeError as error:
        return f"{error}; kernels are built for {_C.ARCHITECTURES}"
    return None
