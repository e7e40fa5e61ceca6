"""Where a field of a row is, by the row's dataclass in `fused_optim.ops`."""

import dataclasses

import triton.language as tl


def fields_of(row: type) -> list[tl.constexpr]:
    """Return the index of each field, in their order, as kernels may use it."""
    return [tl.constexpr(index) for index in range(len(dataclasses.fields(row)))]
