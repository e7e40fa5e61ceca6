"""Field orders of the tables that kernels read (docs/kernel_contract.md, sections 3 and 4).

``csrc/tables.h`` is the C++ side of this file; a test holds the two equal.
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
)
"""Fields of a tensor record, in order, each an int64; `RECORD_SIZE` of them with the reserved."""

RECORD_SIZE = 24
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
class AccumulateRow:
    """The scalar of a gradient accumulation: ``param += grad_mul * grad``."""

    grad_mul: float = 1.0


@functools.cache
def float_fields(row: type) -> int:
    """Return how many of a row's fields, the first ones, are float32 words; others are uint32."""
    return sum(field.type == "float" for field in dataclasses.fields(row))
