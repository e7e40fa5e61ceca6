"""Runs the ops of docs/internals/kernel_contract.md by a compiled extension.

The extension is `_C` on a GPU and `_cpu` on a CPU. It sees addresses, sizes and a stream or a
number of threads, and knows neither torch nor this package.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from fused_optim.backends import cuts
from fused_optim.backends.interface import BucketKey, Counts, Launch, Needs, Shape, Tables
from fused_optim.ops import FAMILIES
from fused_optim.precision import DTYPE_TAGS

MODES = {"none": 0, "nearest": 1, "stochastic": 2, "kahan": 3, "split": 4, "master": 5}
"""Mode of csrc/ops.h, by name."""


class Elementwise:
    """The ops whose work items are chunks.

    Attributes:
        extension: the compiled module.
        place: returns the arguments of its ``Launch`` that say where to run, for the bucket's
            device.
    """

    def __init__(
        self, extension: ModuleType, place: Callable[[torch.device], dict[str, int]]
    ) -> None:
        self.extension = extension
        self.place = place
        chunks = Needs({"chunks": self._chunks})
        self._needs = {
            op: chunks for family in FAMILIES.values() if family.elementwise for op in family.ops
        }
        self._needs["grad_square_sums"] = chunks

    def needs(self, op: str, launch: Launch) -> Needs:
        """Return the maps and the scratch memory that an op reads."""
        return self._needs[op]

    def adamw_(self, tables: Tables, launch: Launch) -> None:
        """Run one AdamW step on every tensor of the bucket, in one launch."""
        self.extension.adamw_(self._launch(tables, "chunks"), tables.key.amsgrad)

    def lion_(self, tables: Tables, launch: Launch) -> None:
        """Run one Lion step on every tensor of the bucket, in one launch."""
        self.extension.lion_(self._launch(tables, "chunks"))

    def grad_square_sums(self, tables: Tables, launch: Launch) -> torch.Tensor:
        """Return ``[entries]``: the sum of squares of each prepared gradient, not yet clipped."""
        sums = new(tables, len(tables.records))
        partials = new(tables, len(tables.maps["chunks"]))
        clamps = FAMILIES[tables.key.op].clamps
        self.extension.grad_square_sums(
            self._launch(tables, "chunks"), clamps, partials.data_ptr(), sums.data_ptr()
        )
        return sums

    def _chunks(self, shape: Shape) -> int:
        return -(-shape.numel // self.extension.CHUNK_SIZE)

    def _launch(self, tables: Tables, name: str) -> Any:
        """Return the extension's view of a launch over the map of this name.

        The tables must outlive the call that it is given to.
        """
        key, items = tables.key, tables.maps[name]
        return self.extension.Launch(
            **self.place(key.device),
            dtype=DTYPE_TAGS[key.dtype],
            mode=MODES[key.mode],
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
            shapes=tables.shapes.data_ptr(),
        )


class WithAdafactor(Elementwise):
    """All ops, of an extension that has Adafactor too."""

    def __init__(
        self, extension: ModuleType, place: Callable[[torch.device], dict[str, int]]
    ) -> None:
        super().__init__(extension, place)
        tiles, lines = _of_shape(extension.adafactor_tiles), _of_shape(extension.adafactor_lines)
        scratch = _of_shape(extension.adafactor_scratch)
        sizes = {
            "tiles": functools.partial(cuts.tile_sizes, extension),
            "visits": lambda shape: torch.tensor([shape.numel], device="cpu"),
        }

        describes = extension.ADAFACTOR_MOST_CUT > 0  # a GPU's kernels
        described = _of_shape(extension.adafactor_shape) if describes else None

        def cut(shapes: Sequence[Shape], key: BucketKey) -> int:
            return cuts.chosen(extension, shapes, key)

        def visits(shape: Shape) -> int:
            """Return 1 for a small tensor, whose whole step the finalising op makes, else 0."""
            return int(cuts.is_visited(extension, shape))

        def large(count: Counts) -> Counts:
            return lambda shape: 0 if visits(shape) else count(shape)

        def needs(**maps: Counts) -> Needs:
            return Needs(maps, scratch, cut, sizes, described)

        large_tiles, large_lines = large(tiles), large(lines)
        self._all_statistics = needs(tiles=tiles, lines=lines)
        self._needs |= {
            "adafactor_statistics": needs(tiles=large_tiles, lines=large_lines),
            "adafactor_finalise_": needs(lines=large_lines, visits=visits),
            "adafactor_update_sums": needs(tiles=large_tiles),
            "adafactor_apply_": needs(tiles=large_tiles),
        }

    def needs(self, op: str, launch: Launch) -> Needs:
        """Return the maps and the scratch memory that an op reads."""
        if op == "adafactor_statistics" and launch.sums_wanted:
            return self._all_statistics
        return super().needs(op, launch)

    def adafactor_statistics(self, tables: Tables, launch: Launch) -> torch.Tensor | None:
        """Run F1 and F2 in two launches: sums of squares of gradients and parameters.

        Returns:
            ``[entries]``: the sum of squares of each gradient, not clipped; None unless wanted.
        """
        sums = None
        if launch.sums_wanted:
            sums = new(tables, len(tables.records))
            if tables.some_empty:
                sums.zero_()
        self.extension.adafactor_statistics(
            self._launch(tables, "tiles"),
            *_addressed(tables.maps["lines"]),
            tables.scratch.data_ptr(),
            0 if sums is None else sums.data_ptr(),
        )
        return sums

    def adafactor_finalise_(self, tables: Tables, launch: Launch) -> None:
        """Run F3 to F5: advance the statistics and find each tensor's step size before clipping.

        For small tensors it also does all that is left of the step.
        """
        self.extension.adafactor_finalise_(
            self._launch(tables, "lines"),
            *_addressed(tables.maps["visits"]),
            launch.sums_wanted,
            tables.scratch.data_ptr(),
        )

    def adafactor_update_sums(self, tables: Tables, launch: Launch) -> None:
        """Run F6: the sum of squares of each update, before it is scaled."""
        self.extension.adafactor_update_sums(
            self._launch(tables, "tiles"), tables.scratch.data_ptr()
        )

    def keeps_sums(self, shape: Shape, rows_split: bool, cols_split: bool) -> bool:
        """Return whether the sums of a part of a tensor lie in scratch memory, to be exchanged.

        Those of small matrices' lines do not, nor what a single row adds to its columns.
        """
        if self._sums(shape)["row_jobs"]:
            return True
        return not rows_split and not (cols_split and shape.batch * shape.rows > 1)

    def shard_sums(
        self, scratch: torch.Tensor, shape: Shape, factored: bool
    ) -> dict[str, torch.Tensor]:
        """Return F1 and F2 of a part of a tensor, by the names that eager gives them.

        Args:
            scratch: the tensor's own, float32.
            shape: of the part.
            factored: whether it has row and column statistics.
        """
        batch, rows, cols = shape.batch, shape.rows, shape.cols
        at = self._sums(shape)
        sums = {"params": scratch[at["params"]]}
        jobs = at["row_jobs"]
        if factored and not jobs and batch * rows == 1:
            sums["rows"] = scratch[at["grads"]]
        if not (factored and jobs):
            return sums
        sums["rows"] = scratch[at["rows"] : at["rows"] + batch * rows]
        sums["cols"] = scratch[at["cols"] : at["cols"] + batch * cols]
        for name, first in (("total", at["means"]), ("old", at["olds"])):
            each = scratch[first : first + batch * jobs].view(batch, jobs)
            if jobs > 1:  # the first takes what the others have
                each[:, 0] = each.sum(-1)
                each[:, 1:] = 0.0
            sums[name] = each[:, 0]
        return sums

    def shard_update_sum(self, scratch: torch.Tensor, shape: Shape) -> torch.Tensor:
        """Return F6 of a part of a tensor, in its scratch memory."""
        return scratch[self._sums(shape)["updates"]]

    def adafactor_apply_(self, tables: Tables, launch: Launch) -> None:
        """Run F7 to F10: scale the updates and write the parameters."""
        self.extension.adafactor_apply_(self._launch(tables, "tiles"), tables.scratch.data_ptr())

    def _sums(self, shape: Shape) -> dict[str, int]:
        """Return where in a tensor's scratch memory its sums lie."""
        return self.extension.adafactor_sums(shape.batch, shape.rows, shape.cols, shape.cut)


def _of_shape(count: Callable[[int, int, int, int], Any]) -> Callable[[Shape], Any]:
    return lambda shape: count(shape.batch, shape.rows, shape.cols, shape.cut)


def _addressed(items: torch.Tensor) -> tuple[int, int]:
    return items.data_ptr(), len(items)


def new(tables: Tables, numel: int) -> torch.Tensor:
    """Return float32 ``[numel]`` on the bucket's device."""
    return torch.empty(numel, dtype=torch.float32, device=tables.key.device)
