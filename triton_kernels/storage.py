"""Loads and stores shared by all kernels (docs/internals/kernel_contract.md, sections 3, 7 and 8).

Blocks are ``[n, 8]``: a row is eight consecutive elements, which share one Philox block and, at 16
bits each, one 128-bit access. Registers are float32; 16-bit storage is read and written as bits.

note: [predicated loads] Where a dtype is known at run time alone, there is one predicated load for
each dtype, with a mask that is the same for the whole block. So vectors stay whole, no branch makes
one load wait for another, and a load that is switched off moves nothing.
"""

import triton
import triton.language as tl

from fused_optim import ops

from .rounding import (
    bits_of,
    from_bfloat16,
    from_float16,
    master_shown,
    nearest,
    random_halves,
    stochastic,
    widen,
)

RECORD_SIZE = tl.constexpr(ops.RECORD_SIZE)
ROW_SIZE = tl.constexpr(ops.ROW_SIZE)
# Indices of the fields of a record.
(PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ, EXTRA, RMS, LAYOUT, NUMEL, FIRST_ELEMENT, ROW,
 NUMBER, GRAD_DTYPE, EXP_AVG_DTYPE, EXP_AVG_SQ_DTYPE, FLAGS, BATCH, ROWS, COLS, SCRATCH,
 GLOBAL_NUMEL, GLOBAL_ROWS, GLOBAL_COLS, CUT) = map(
    tl.constexpr, range(len(ops.RECORD_FIELDS))
)  # fmt: skip
ALIGNED = tl.constexpr(1)

FLOAT32, FLOAT16, BFLOAT16, FLOAT64, EIGHT_BIT = map(tl.constexpr, range(5))
PARAM_STREAM, EXP_AVG_STREAM, EXP_AVG_SQ_STREAM, MAX_EXP_AVG_SQ_STREAM = map(tl.constexpr, range(4))

LAYOUT_DIMS = tl.constexpr(8)


@triton.jit
def pointer(address, dtype: tl.constexpr, VECTOR: tl.constexpr):
    """Return an address as a pointer; ``VECTOR`` promises that it is a multiple of 16 bytes."""
    ptr = address.to(tl.pointer_type(dtype))
    if VECTOR:
        ptr = tl.multiple_of(ptr, 16)
    return ptr


@triton.jit
def both(mask, condition):
    """Return the mask of a load that happens under a condition; a mask of None means all."""
    if mask is None:
        return condition
    else:
        return mask & condition


@triton.jit
def load_tagged(address, tag, offset, mask, VECTOR: tl.constexpr):
    """Return float32 values from storage of one of three dtypes. See [predicated loads]."""
    tags = tl.zeros_like(offset) + tag  # the interpreter takes no mask made from a scalar
    wide = tl.load(
        pointer(address, tl.float32, VECTOR) + offset, mask=both(mask, tags == FLOAT32), other=0.0
    )
    bits = tl.load(
        pointer(address, tl.int16, VECTOR) + offset, mask=both(mask, tags != FLOAT32), other=0
    )
    narrow = tl.where(tag == BFLOAT16, from_bfloat16(bits), from_float16(bits))
    return tl.where(tag == FLOAT32, wide, narrow)


@triton.jit
def load_gradient(address, tag, offset, mask, VECTOR: tl.constexpr):
    """Return float32 values of a gradient of any dtype; float64 is rounded, without vectors."""
    if VECTOR:
        g = load_tagged(address, tag, offset, mask, VECTOR)
    elif tag == FLOAT64:
        g = tl.load(pointer(address, tl.float64, False) + offset, mask=mask).to(tl.float32)
    else:
        g = load_tagged(address, tag, offset, mask, VECTOR)
    return g


@triton.jit
def takes_vectors(record):
    """Return whether a record's elements may be read in vectors from its first one on."""
    aligned = tl.load(record + FLAGS) == ALIGNED
    octets = tl.load(record + FIRST_ELEMENT) % 8 == 0
    return aligned & octets & (tl.load(record + GRAD_DTYPE) != FLOAT64)


@triton.jit
def prepare(g, grad_mul, clip_value, clip):
    """Return a prepared gradient; ``grad_mul`` includes the unscaling."""
    g = g * grad_mul
    g = tl.maximum(g, -clip_value, propagate_nan=tl.PropagateNan.ALL)
    g = tl.minimum(g, clip_value, propagate_nan=tl.PropagateNan.ALL)
    return g * clip


@triton.jit
def decode(param, extra, offset, extra_offset, mask, DTYPE: tl.constexpr, MODE: tl.constexpr,
           VECTOR: tl.constexpr):  # fmt: skip
    """Return the float32 value of parameter elements; an external write wins over extra state."""
    if MODE == "none":
        return tl.load(pointer(param, tl.float32, VECTOR) + offset, mask=mask)
    p = tl.load(pointer(param, tl.int16, VECTOR) + offset, mask=mask)
    shown = widen(p, DTYPE)
    if MODE == "kahan":
        c = tl.load(pointer(extra, tl.int16, VECTOR) + extra_offset, mask=mask)
        y = shown + widen(c, DTYPE)
        return tl.where(nearest(y, DTYPE) == p, y, shown)
    elif MODE == "split":
        low = tl.load(pointer(extra, tl.int16, VECTOR) + extra_offset, mask=mask).to(tl.int32)
        high = p.to(tl.int32)
        # No value has such a pair: the remainder is that of a value overwritten since.
        magnitude = high & 0x7FFF
        stale = ((magnitude == 0) & (low < 0)) | ((magnitude == 0x7F80) & (low > 0))
        low = tl.where(stale, 0, low)
        bits = ((high - (low < 0).to(tl.int32)) << 16) | (low & 0xFFFF)
        return bits.to(tl.float32, bitcast=True)
    elif MODE == "master":
        master = tl.load(pointer(extra, tl.float32, VECTOR) + extra_offset, mask=mask)
        return tl.where(master_shown(master, DTYPE) == p, master, shown)
    else:
        return shown


@triton.jit
def encode(x, param, extra, offset, extra_offset, mask, draw, DTYPE: tl.constexpr,
           MODE: tl.constexpr, VECTOR: tl.constexpr):  # fmt: skip
    """Store the float32 values of parameter elements, with the extra state of the mode."""
    if MODE == "none":
        tl.store(pointer(param, tl.float32, VECTOR) + offset, x, mask=mask)
    else:
        if MODE == "stochastic":
            bits = stochastic(x, draw_halves(draw, PARAM_STREAM), DTYPE)
        elif MODE == "split" or MODE == "master":
            bits = master_shown(x, DTYPE)
        else:
            bits = nearest(x, DTYPE)
        tl.store(pointer(param, tl.int16, VECTOR) + offset, bits, mask=mask)
        if MODE == "kahan":
            c = compensation(x, bits, DTYPE)
            tl.store(pointer(extra, tl.int16, VECTOR) + extra_offset, c, mask=mask)
        elif MODE == "split":
            remainder = bits_of(x).to(tl.int16)
            tl.store(pointer(extra, tl.int16, VECTOR) + extra_offset, remainder, mask=mask)
        elif MODE == "master":
            tl.store(pointer(extra, tl.float32, VECTOR) + extra_offset, x, mask=mask)


@triton.jit
def compensation(x, bits, DTYPE: tl.constexpr):
    """Return the bits of the compensation of x stored as ``bits``, which decoding accepts."""
    shown = widen(bits, DTYPE)
    c = nearest(tl.where(tl.abs(shown) < float("inf"), x - shown, 0.0), DTYPE)  # 0 for NaN too
    refused = (nearest(shown + widen(c, DTYPE), DTYPE) != bits) & ((c & 0x7FFF) != 0)
    return tl.where(refused, c - 1, c).to(tl.int16)


@triton.jit
def draw_halves(draw, stream):
    """Return one stream's random bits; a draw is (group, lane, (step, number, seed halves))."""
    group, lane, source = draw
    step, number, seed_low, seed_high = source
    word = number.to(tl.uint32) | (stream << 28)
    return random_halves(group, lane, step.to(tl.uint32, bitcast=True), word, seed_low, seed_high)


@triton.jit
def store_moment(x, address, tag, offset, mask, draw, stream, VECTOR: tl.constexpr):
    """Store moments: float32 as they are, bfloat16 at random, float16 to nearest."""
    if tag == FLOAT32:
        tl.store(pointer(address, tl.float32, VECTOR) + offset, x, mask=mask)
    else:
        if tag == BFLOAT16:
            bits = stochastic(x, draw_halves(draw, stream), tl.bfloat16)
        else:
            bits = nearest(x, tl.float16)
        tl.store(pointer(address, tl.int16, VECTOR) + offset, bits, mask=mask)


@triton.jit
def strided_offsets(layout, index):
    """Return the offsets of logical indices in the seven tensors of a layout block."""
    layout_ptr = pointer(layout, tl.int64, False)
    dims = tl.load(layout_ptr)
    rest = index
    param = tl.zeros_like(index)
    grad, exp_avg, exp_avg_sq = param, param, param
    max_exp_avg_sq, extra, element = param, param, param
    for k in range(dims):
        d = dims - 1 - k
        size = tl.load(layout_ptr + 1 + d)
        i = rest % size
        rest = rest // size
        strides = layout_ptr + 1 + LAYOUT_DIMS + d
        param += i * tl.load(strides)
        grad += i * tl.load(strides + LAYOUT_DIMS)
        exp_avg += i * tl.load(strides + 2 * LAYOUT_DIMS)
        exp_avg_sq += i * tl.load(strides + 3 * LAYOUT_DIMS)
        max_exp_avg_sq += i * tl.load(strides + 4 * LAYOUT_DIMS)
        extra += i * tl.load(strides + 5 * LAYOUT_DIMS)
        element += i * tl.load(strides + 6 * LAYOUT_DIMS)
    return param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, extra, element
