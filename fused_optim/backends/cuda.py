"""The CUDA backend: the ops of docs/kernel_contract.md, launched through the extension `_C`.

The extension sees addresses, sizes and a stream; it knows neither torch nor this package. It has no
kernels where the installation found no CUDA compiler, and importing this module then fails.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch

from fused_optim.backends.interface import Bucket, Launch
from fused_optim.ops import RECORD_FIELDS
from fused_optim.plan.tables import Counts, Tables
from fused_optim.precision import DTYPE_TAGS

__all__ = [
    "accumulate_",
    "adafactor_apply_",
    "adafactor_finalise_",
    "adafactor_statistics",
    "adafactor_update_sums",
    "adamw_",
    "grad_square_sums",
]

_NUMEL = RECORD_FIELDS.index("numel")
_LOCAL_SIZES = [RECORD_FIELDS.index(name) for name in ("numel", "rows", "cols")]
_GLOBAL_SIZES = [RECORD_FIELDS.index(f"global_{name}") for name in ("numel", "rows", "cols")]
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


def adamw_(bucket: Bucket, launch: Launch) -> None:
    """Run one AdamW step on every tensor of the bucket, in one launch."""
    tables = bucket.tables(launch)
    _C.adamw_(_launch(bucket, tables, tables.chunks(_C.CHUNK_SIZE)), bucket.key.amsgrad)


def grad_square_sums(bucket: Bucket, launch: Launch) -> torch.Tensor:
    """Return ``[entries]``: the sum of squares of each gradient, prepared but not yet clipped."""
    tables = bucket.tables(launch)
    chunks = tables.chunks(_C.CHUNK_SIZE)
    sums = _new(bucket, len(tables.records))
    partials = _new(bucket, len(chunks))
    clamps = bucket.key.op == "adamw"
    _C.grad_square_sums(
        _launch(bucket, tables, chunks), clamps, partials.data_ptr(), sums.data_ptr()
    )
    return sums


def accumulate_(bucket: Bucket, launch: Launch) -> None:
    """Add each entry's prepared gradient to its parameter, which is the buffer it adds up in."""
    tables = bucket.tables(launch)
    _C.accumulate_(_launch(bucket, tables, tables.chunks(_C.CHUNK_SIZE)))


def adafactor_statistics(bucket: Bucket, launch: Launch) -> torch.Tensor | None:
    """Run F1 and F2 in two launches: sums of squares of gradients and parameters.

    Returns:
        ``[entries]``: the sum of squares of each gradient, not clipped; None unless it is wanted.
    """
    items = _adafactor_items(bucket, launch)
    tables, sums = items.tables, None
    if launch.sums_wanted:
        sums = _new(bucket, len(tables.records))
        if tables.derived("some empty", lambda records: bool((records[:, _NUMEL] == 0).any())):
            sums.zero_()
    _C.adafactor_statistics(
        _launch(bucket, tables, items.tiles(all_tensors=launch.sums_wanted)),
        *_addressed(items.lines(all_tensors=launch.sums_wanted)),
        tables.scratch().data_ptr(),
        0 if sums is None else sums.data_ptr(),
    )
    return sums


def adafactor_finalise_(bucket: Bucket, launch: Launch) -> None:
    """Run F3 to F5: advance the statistics and find each tensor's step size before clipping.

    Of small tensors it does all that is left of the step.
    """
    items = _adafactor_items(bucket, launch)
    _C.adafactor_finalise_(
        _launch(bucket, items.tables, items.lines()),
        *_addressed(items.visits()),
        launch.sums_wanted,
        items.tables.scratch().data_ptr(),
    )


def adafactor_update_sums(bucket: Bucket, launch: Launch) -> None:
    """Run F6: the sum of squares of each update, before it is scaled."""
    items = _adafactor_items(bucket, launch)
    scratch = items.tables.scratch()
    _C.adafactor_update_sums(_launch(bucket, items.tables, items.tiles()), scratch.data_ptr())


def adafactor_apply_(bucket: Bucket, launch: Launch) -> None:
    """Run F7 to F10: scale the updates and write the parameters."""
    items = _adafactor_items(bucket, launch)
    scratch = items.tables.scratch()
    _C.adafactor_apply_(_launch(bucket, items.tables, items.tiles()), scratch.data_ptr())


class _AdafactorItems(NamedTuple):
    """The work of Adafactor's launches: tiles and lines of large tensors, and small ones whole."""

    tables: Tables
    is_small: Callable[[int, int, int], bool]  # of (batch, rows, cols)

    def tiles(self, *, all_tensors: bool = False) -> torch.Tensor:
        return self._of_large("tiles", _C.adafactor_tiles, all_tensors)

    def lines(self, *, all_tensors: bool = False) -> torch.Tensor:
        return self._of_large("lines", _C.adafactor_lines, all_tensors)

    def visits(self) -> torch.Tensor:
        return self.tables.tiles("adafactor visits", self.is_small)

    def _of_large(self, name: str, counts: Counts, all_tensors: bool) -> torch.Tensor:
        def of_large(*shape: int) -> int:
            return 0 if self.is_small(*shape) else counts(*shape)

        if all_tensors:
            return self.tables.tiles(f"adafactor {name}", counts)
        return self.tables.tiles(f"adafactor {name} of large tensors", of_large)


def _adafactor_items(bucket: Bucket, launch: Launch) -> _AdafactorItems:
    tables = bucket.tables(launch, _C.adafactor_scratch)
    # Between the ops the sums of shards are added up over processes, so no op may do them alone.
    sharded = tables.derived("some sharded", _some_sharded)
    return _AdafactorItems(tables, _never if sharded else _C.adafactor_visited)


def _never(batch: int, rows: int, cols: int) -> bool:
    return False


def _some_sharded(records: torch.Tensor) -> bool:
    local, whole = records[:, _LOCAL_SIZES], records[:, _GLOBAL_SIZES]
    return not torch.equal(local, whole)


def _addressed(items: torch.Tensor) -> tuple[int, int]:
    return items.data_ptr(), len(items)


def _new(bucket: Bucket, numel: int) -> torch.Tensor:
    return torch.empty(numel, dtype=torch.float32, device=bucket.key.device)


def _launch(bucket: Bucket, tables: Tables, items: torch.Tensor):
    """Return the extension's view of a launch. The tables must outlive the call it is given to."""
    key = bucket.key
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

    The reasons are a driver older than the runtime that was linked, and a device of an architecture
    that no kernel was compiled for.
    """
    try:
        _C.check_device(device)
    except RuntimeError as error:
        return f"{error}; kernels are built for {_C.ARCHITECTURES}"
    return None
