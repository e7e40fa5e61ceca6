"""Indices of the fields of rows, from the rows' dataclasses in `fused_optim.ops`."""

import dataclasses

import triton.language as tl


def fields_of(row: type) -> list[tl.constexpr]:
    """Return the index of each field, in order, as constants that kernels may use."""
    return [tl.constexpr(index) for index in range(len(dataclasses.fields(row)))]
