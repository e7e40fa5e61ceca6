"""The registry of ops: their order in a step, their rows and their kernels.

Everything that depends on an update's name or row looks it up here: the packing of rows, the order
of a step, the lists of kernels that ``setup.py`` and the tests build, ``csrc/common/tables.h``.
This file needs nothing but Python, as ``setup.py`` reads it where there is no torch yet.
"""

from __future__ import annotations

import dataclasses
import functools
import math

RECORD_FIELDS = (
    "param",
    "grad",
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "extra",
    "rms",
    "layout",
    "numel",
    "first_element",
    "row",
    "number",
    "grad_dtype",
    "exp_avg_dtype",
    "exp_avg_sq_dtype",
    "flags",
    "batch",
    "rows",
    "cols",
    "scratch",
    "global_numel",
    "global_rows",
    "global_cols",
    "cut",
)
"""Fields of a tensor record, in order, each an int64.

Section 3 of docs/internals/kernel_contract.md defines them.
"""

RECORD_SIZE = len(RECORD_FIELDS)
ROW_SIZE = 16
MAX_NUMBER = 1 << 28

SCALE_PARAMETER = 1
HOLD_IF_ZERO = 2
CLIP_IGNORES_NAN = 4


@dataclasses.dataclass(frozen=True, slots=True)
class AdamWRow:
    """The scalars of an AdamW step, as Python doubles. Field order is the packed order."""

    grad_mul: float = 1.0
    clip_value: float = math.inf
    l2: float = 0.0
    decay_before: float = 1.0
    omb1: float = 0.1
    b2: float = 0.999
    omb2: float = 0.001
    step_size: float = 1e-3
    denom_scale: float = 1.0
    eps: float = 1e-8
    decay_after: float = 1.0
    step: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class AdafactorRow:
    """The scalars of an Adafactor step, as Python doubles. Field order is the packed order."""

    grad_mul: float = 1.0
    rho: float = 1e-2
    eps_grad: float = 1e-30
    eps_rms: float = 1e-3
    clip_threshold: float = 1.0
    b2: float = 0.0
    omb2: float = 1.0
    b1: float = 0.0
    omb1: float = 1.0
    decay_alpha: float = 0.0
    decay_before: float = 1.0
    mean_floor: float = 0.0
    update_cap: float = math.inf
    step: int = 1
    flags: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class LionRow:
    """The scalars of a Lion step, as Python doubles. Field order is the packed order."""

    grad_mul: float = 1.0
    clip_value: float = math.inf
    decay_before: float = 1.0
    b1: float = 0.9
    omb1: float = 0.1
    b2: float = 0.99
    omb2: float = 0.01
    step_size: float = 1e-4
    step: int = 1


@functools.cache
def float_fields(row: type) -> int:
    """Return how many fields of a row are float32 words; these come first, then uint32 words."""
    return sum(field.type == "float" for field in dataclasses.fields(row))


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """One update, and the ops that make up its step.

    Attributes:
        name: the stem of its files, and the ``op`` of its buckets.
        row: the dataclass of its scalars. ``grad_mul`` comes first, ``clip_value`` next if it has
            one, as every elementwise update does. A field is a float32 word where it is annotated
            as a float, else a uint32.
        updates: its ops in the order of a step, after clipping.
        statistics: the op before clipping, which returns sums of squared gradients; None without.
        kernels: the files of ``csrc`` that hold its kernels; none where eager alone has the ops.
        rate: the field of its row that scales the whole update. A rate of 0 moves nothing.
        exchanged: the op after which sums of the parts of a tensor are added up over processes, as
            they are after its statistics; None where no op takes sums.
        elementwise: whether an element's update reads that element of each tensor alone. Otherwise
            a tensor is a batch of matrices, and its second moment is rows and columns of them.
    """

    name: str
    row: type
    updates: tuple[str, ...]
    kernels: tuple[str, ...]
    rate: str
    statistics: str | None = None
    exchanged: str | None = None
    elementwise: bool = True

    @property
    def ops(self) -> tuple[str, ...]:
        """All ops of a step, in order."""
        return self.updates if self.statistics is None else (self.statistics, *self.updates)

    @property
    def clamps(self) -> bool:
        """Whether gradients are clamped to ``clip_value`` of the row."""
        return any(field.name == "clip_value" for field in dataclasses.fields(self.row))


_ADAFACTOR = ("statistics", "finalise", "update_sums", "apply")

FAMILIES = {
    family.name: family
    for family in (
        Family("adamw", AdamWRow, ("adamw_",), ("elementwise/adamw",), rate="step_size"),
        Family(
            "adafactor",
            AdafactorRow,
            ("adafactor_finalise_", "adafactor_update_sums", "adafactor_apply_"),
            tuple(f"adafactor/{stage}" for stage in _ADAFACTOR),
            rate="rho",
            statistics="adafactor_statistics",
            exchanged="adafactor_update_sums",
            elementwise=False,
        ),
        Family("lion", LionRow, ("lion_",), ("elementwise/lion",), rate="step_size"),
    )
}
"""Every update by its name. Any other name is a KeyError wherever it is looked up."""

ROWS = {family.row: family for family in FAMILIES.values()}
"""The families by their rows."""

GRADIENT_SUMS = "grad_square_sums"
"""The op that clipping runs on a bucket whose family has no statistics op."""

OPS = (*(op for family in FAMILIES.values() for op in family.ops), GRADIENT_SUMS)
"""The ops that a complete backend has."""

KERNELS = (*(name for family in FAMILIES.values() for name in family.kernels), "gradients")
"""The files of ``csrc`` that are compiled for a GPU, without their suffix: folder and stem."""
