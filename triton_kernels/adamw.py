"""AdamW for every tensor of a bucket, in one launch."""

import triton
import triton.language as tl

from fused_optim.ops import AdamWRow

from .elementwise import ARGUMENTS, DTYPES, NUM_WARPS, WARP_SIZE, sizes, step_chunk
from .launching import arguments_of
from .launching import launch as launch_kernel
from .rows import fields_of

(GRAD_MUL, CLIP_VALUE, L2, DECAY_BEFORE, OMB1, B2, OMB2, STEP_SIZE, DENOM_SCALE, EPS, DECAY_AFTER,
 STEP) = fields_of(AdamWRow)  # fmt: skip


def adamw_(tables, launch) -> None:
    """Run one AdamW step on every tensor of the bucket (kernel contract, section 6)."""
    key = tables.key
    moments = 2 + key.amsgrad
    launch_kernel(
        adamw_kernel,
        len(tables.maps["chunks"]),
        *arguments_of(tables, "chunks"),
        device=key.device,
        DTYPE=DTYPES[key.dtype],
        MODE=key.mode,
        MOMENTS=moments,
        PACKED=tables.packed,
        **sizes(key.dtype, moments, tables.draws, WARP_SIZE),
        num_warps=NUM_WARPS,
    )


@triton.jit
def scalars(row_ptr):
    """Return the scalars of a row that `update` reads."""
    return (
        tl.load(row_ptr + L2),
        tl.load(row_ptr + DECAY_BEFORE),
        tl.load(row_ptr + OMB1),
        tl.load(row_ptr + B2),
        tl.load(row_ptr + OMB2),
        tl.load(row_ptr + STEP_SIZE),
        tl.load(row_ptr + DENOM_SCALE),
        tl.load(row_ptr + EPS),
        tl.load(row_ptr + DECAY_AFTER),
    )


@triton.jit
def update(p, g, m, v, h, row, MOMENTS: tl.constexpr):
    """Return p, m, v, h after W1 to W6, in float32 registers, every operation rounded once."""
    l2, decay_before, omb1, b2, omb2, step_size, denom_scale, eps, decay_after = row
    g = tl.where(l2 != 0.0, g + (l2 * p), g)  # [W1]
    p = p * decay_before  # [W2]
    m = m + (omb1 * (g - m))  # [W3]
    v = (b2 * v) + ((omb2 * g) * g)  # [W4]
    s = v
    if MOMENTS == 3:
        h = tl.maximum(h, v, propagate_nan=tl.PropagateNan.ALL)  # [W5]
        s = h
    quotient = tl.div_rn(step_size * m, (tl.sqrt_rn(s) * denom_scale) + eps)
    p = (p - (quotient + 0.0)) * decay_after  # [W6]
    return p, m, v, h


@triton.jit(do_not_specialize=ARGUMENTS)
def adamw_kernel(records, rows, chunks, num_chunks, grad_scale, found_inf, clip, clip_stride,
                 seed_low, seed_high, DTYPE: tl.constexpr, MODE: tl.constexpr,
                 MOMENTS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
                 TAIL: tl.constexpr, PACKED: tl.constexpr):  # fmt: skip
    """Run W1 to W6; one program updates one chunk."""
    if tl.load(found_inf) != 0.0:
        return
    step_chunk(records, rows, chunks, grad_scale, clip, clip_stride, seed_low, seed_high,
               scalars, update, STEP, MOMENTS, DTYPE, MODE, CHUNK, BLOCK, TAIL,
               PACKED)  # fmt: skip
