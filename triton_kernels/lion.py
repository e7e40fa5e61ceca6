"""Lion for every tensor of a bucket, in one launch."""

import triton
import triton.language as tl

from fused_optim.ops import LionRow

from .elementwise import ARGUMENTS, DTYPES, NUM_WARPS, WARP_SIZE, sizes, step_chunk
from .launching import arguments_of
from .launching import launch as launch_kernel
from .rows import fields_of

(GRAD_MUL, CLIP_VALUE, DECAY_BEFORE, B1, OMB1, B2, OMB2, STEP_SIZE, STEP) = fields_of(LionRow)


def lion_(tables, launch) -> None:
    """Run one Lion step on every tensor of the bucket (kernel contract, section 6)."""
    key = tables.key
    launch_kernel(
        lion_kernel,
        len(tables.maps["chunks"]),
        *arguments_of(tables, "chunks"),
        device=key.device,
        DTYPE=DTYPES[key.dtype],
        MODE=key.mode,
        **sizes(key.dtype, 1, tables.draws, WARP_SIZE),
        num_warps=NUM_WARPS,
    )


@triton.jit
def scalars(row_ptr):
    """Return the scalars of a row that `update` reads."""
    return (
        tl.load(row_ptr + DECAY_BEFORE),
        tl.load(row_ptr + B1),
        tl.load(row_ptr + OMB1),
        tl.load(row_ptr + B2),
        tl.load(row_ptr + OMB2),
        tl.load(row_ptr + STEP_SIZE),
    )


@triton.jit
def update(p, g, m, v, h, row, MOMENTS: tl.constexpr):
    """Return p and m after L1 to L3, in float32 registers, every operation rounded once."""
    decay_before, b1, omb1, b2, omb2, step_size = row
    u = (b1 * m) + (omb1 * g)  # [L1]
    rest = tl.where(u < 0.0, -step_size, u)  # 0 and NaN are their own signs
    p = (p * decay_before) - (tl.where(u > 0.0, step_size, rest) + 0.0)  # [L2]
    m = (b2 * m) + (omb2 * g)  # [L3]
    return p, m, v, h


@triton.jit(do_not_specialize=ARGUMENTS)
def lion_kernel(records, rows, chunks, num_chunks, grad_scale, found_inf, clip, clip_stride,
                seed_low, seed_high, DTYPE: tl.constexpr, MODE: tl.constexpr,
                CHUNK: tl.constexpr, BLOCK: tl.constexpr, TAIL: tl.constexpr):  # fmt: skip
    """Run L1 to L3; one program updates one chunk."""
    if tl.load(found_inf) != 0.0:
        return
    step_chunk(records, rows, chunks, grad_scale, clip, clip_stride, seed_low, seed_high,
               scalars, update, STEP, 1, DTYPE, MODE, CHUNK, BLOCK, TAIL)  # fmt: skip
