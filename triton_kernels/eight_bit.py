"""Moments in 8 bits (kernel contract, section 8): records of 256 codes and a scale.

A program holds one block at a time, as ``[32, 8]``, so that the extremes that make its scale are
those of all its registers.
"""

import triton
import triton.language as tl

from .storage import draw_halves, pointer

BLOCK_SIZE = tl.constexpr(256)
RECORD_BYTES = tl.constexpr(260)
_INFINITY = tl.constexpr(0x7F800000)
_NAN = tl.constexpr(0x7FC00000)
_SPOILED = tl.constexpr(0x7FC00008)
_LARGEST_INT = tl.constexpr(0x7FFFFFFF)


@triton.jit
def magnitude_bits(x):
    """Return the int32 bits of float32 |x|."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _codes_and_scale(records, block, index):
    """Return a block's codes, as int32, and the bits of its scale."""
    record = pointer(records, tl.uint8, False) + block * RECORD_BYTES
    codes = tl.load(record + index).to(tl.int32)
    return codes, tl.load((record + BLOCK_SIZE).to(tl.pointer_type(tl.int32), bitcast=True))


@triton.jit
def _store(records, block, index, codes, scale):
    record = pointer(records, tl.uint8, False) + block * RECORD_BYTES
    tl.store(record + index, codes.to(tl.uint8))
    tl.store((record + BLOCK_SIZE).to(tl.pointer_type(tl.int32), bitcast=True), scale)


@triton.jit
def _second_of(codes, scale):
    """Return what codes of second moments stand for."""
    bits = (scale & ~0xFF) - ((255 - codes) << (scale & 0x1F))
    bits = tl.where(codes == 0, 0, bits)
    return tl.where(scale >= _INFINITY, _NAN, bits).to(tl.float32, bitcast=True)


@triton.jit
def load_second(records, block, index):
    """Return the second moments of a block, float32."""
    codes, scale = _codes_and_scale(records, block, index)
    return _second_of(codes, scale)


@triton.jit
def store_second(v, records, block, index, draw, stream):
    """Store second moments; return what their codes stand for."""
    bits = magnitude_bits(v)
    top = tl.max(tl.max(bits, axis=1), axis=0)
    least = tl.min(tl.min(tl.where(bits == 0, _LARGEST_INT, bits), axis=1), axis=0)
    largest = (top + 0xFF) & ~0xFF
    span = largest - tl.minimum(least, largest)
    shift = 8
    for one in tl.static_range(8, 20):
        shift += (span > (254 << one)).to(tl.int32)
    random = draw_halves(draw, stream)
    down = tl.minimum(largest - bits, 254 << shift)
    back = 16 - shift
    dither = tl.where(shift < 16, random >> tl.maximum(back, 0), random << tl.maximum(-back, 0))
    lowest = tl.minimum((largest - 1) >> shift, 254)  # no code stands for less than zero
    codes = 255 - tl.minimum((down + dither) >> shift, lowest)
    codes = tl.where(bits == 0, 0, codes)
    spoiled = top >= _INFINITY
    codes = tl.where(spoiled, 255, codes)
    scale = tl.where(spoiled, _SPOILED, largest | shift)
    _store(records, block, index, codes, scale)
    return _second_of(codes, scale)


@triton.jit
def _unit(second, SIGN: tl.constexpr):
    """Return the units of first moments, or for a ``SIGN`` of -1 their reciprocals: exact ones."""
    half = (((second.to(tl.int32, bitcast=True) >> 23) + 127) >> 1) - 127
    return ((127 + SIGN * half) << 23).to(tl.float32, bitcast=True)


@triton.jit
def load_first(records, block, index, second):
    """Return the first moments of a block, float32; ``second`` is what `load_second` returned."""
    codes, scale = _codes_and_scale(records, block, index)
    signed = (codes ^ 0x80) - 0x80
    return signed.to(tl.float32) * scale.to(tl.float32, bitcast=True) * _unit(second, 1)


@triton.jit
def store_first(m, records, block, index, second, draw, stream):
    """Store first moments; ``second`` is what the codes of the second moments stand for."""
    units = m * _unit(second, -1)
    bits = magnitude_bits(units)
    top = tl.max(tl.max(bits, axis=1), axis=0)
    step = tl.div_rn(top.to(tl.float32, bitcast=True), 127.0).to(tl.int32, bitcast=True)
    step = (step + 0x7F) & ~0x7F  # 17 bits, so that the product with a code of 7 bits is exact
    step = tl.where(top < _INFINITY, step, _NAN)
    scale = step.to(tl.float32, bitcast=True)
    inverse = tl.where(scale > 0.0, tl.div_rn(1.0, scale), 0.0)
    random = draw_halves(draw, stream)
    dither = ((random >> 8).to(tl.float32) + 0.5) * (1.0 / 256.0)
    steps = (bits.to(tl.float32, bitcast=True) * inverse) + dither
    codes = tl.where(steps > 0.0, tl.where(steps < 127.0, steps, 127.0), 0.0).to(tl.int32)
    codes = tl.where(m.to(tl.int32, bitcast=True) < 0, -codes, codes)
    _store(records, block, index, codes & 0xFF, step)
