"""How the bit reference keeps AdamW's moments in 8 bits: element by element, in Python's integers.

A record is 256 codes and a little-endian word: of a second moment the bits of the largest value
with a shift in the low byte, of a first moment the float32 that one code stands for.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np
from oracle_random import STREAMS, Random
from oracle_rounding import F32

BLOCK, RECORD = 256, 260
SPOILED = 0x7FC00008
NAN = np.float32(np.nan)


def _float(bits: int) -> np.float32:
    return np.uint32(bits).view(np.float32)


def _bits(x: np.float32) -> int:
    return int(np.float32(x).view(np.uint32)) & 0x7FFFFFFF


def _scale_bits(record: np.ndarray) -> int:
    return struct.unpack("<I", record[BLOCK:].tobytes())[0]


def decode_second(record: np.ndarray) -> F32:
    word = _scale_bits(record)
    if word >= 0x7F800000:
        return np.full(BLOCK, NAN)
    largest, shift = word - word % 256, word % 32
    values = [0 if code == 0 else largest - (255 - int(code) << shift) for code in record[:BLOCK]]
    return np.array(values, np.uint32).view(np.float32)


def encode_second(values: F32, random: np.ndarray) -> np.ndarray:
    bits = [_bits(x) for x in values]
    positive = [b for b in bits if b > 0]
    if any(b >= 0x7F800000 for b in bits):
        codes, word = [255] * BLOCK, SPOILED
    else:
        largest = -(-max(bits) // 256) * 256
        span = largest - min(positive, default=largest)
        shift = next((s for s in range(8, 20) if 254 * 2**s >= span), 20)
        codes, word = [], largest + shift
        for b, r in zip(bits, random, strict=True):
            steps = (min(largest - b, 254 * 2**shift) + int(r) * 2**shift // 65536) // 2**shift
            lowest = min(254, (largest - 1) // 2**shift)
            codes.append(255 - min(steps, lowest) if b else 0)
    return np.frombuffer(bytes(codes) + struct.pack("<I", word), np.uint8)


def _unit(second: np.float32) -> np.float32:
    """Return 2 to half the second moment's exponent, rounded down; subnormals have that of zero."""
    exponent = (_bits(second) >> 23) - 127
    return np.float32(2.0) ** np.float32(np.floor(exponent / 2))


def decode_first(record: np.ndarray, second: F32) -> F32:
    scale = _float(_scale_bits(record))
    codes = record[:BLOCK].view(np.int8).astype(np.float32)
    return np.array([c * scale * _unit(v) for c, v in zip(codes, second, strict=True)], np.float32)


def encode_first(values: F32, second: F32, random: np.ndarray) -> np.ndarray:
    units = np.array([x / _unit(v) for x, v in zip(values, second, strict=True)], np.float32)
    top = np.abs(units).max()  # numpy's maximum keeps a NaN
    codes, scale = [0] * BLOCK, NAN
    if np.isfinite(top):
        # Up to 17 bits: the low 7 of 24 are zero.
        scale = _float(-(-_bits(top / np.float32(127)) // 128) * 128)
        inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
        for i, (u, r) in enumerate(zip(units, random, strict=True)):
            dither = np.float32((int(r) // 256 + 0.5) / 256)
            steps = np.float32(np.abs(u) * inverse) + dither
            codes[i] = int(min(steps, np.float32(127))) * (-1 if np.signbit(u) else 1)
    packed = np.array(codes, np.int8).tobytes() + struct.pack("<I", int(scale.view(np.uint32)))
    return np.frombuffer(packed, np.uint8)


def _records(stored: np.ndarray) -> np.ndarray:
    return np.asarray(stored, np.uint8).reshape(-1, RECORD)


def _blocks(values: np.ndarray) -> np.ndarray:
    flat = np.ravel(values)
    return np.pad(flat, (0, -flat.size % BLOCK)).reshape(-1, BLOCK)


@np.errstate(all="ignore")
def load(state: Mapping[str, np.ndarray], keys: tuple[str, ...], shape: tuple) -> dict[str, F32]:
    """Return the moments that records stand for, in a parameter's shape."""
    count = int(np.prod(shape))
    second = [decode_second(r) for r in _records(state["exp_avg_sq"])]
    found = {"exp_avg_sq": second}
    records = _records(state["exp_avg"])
    found["exp_avg"] = [decode_first(r, v) for r, v in zip(records, second, strict=True)]
    if "max_exp_avg_sq" in state:
        found["max_exp_avg_sq"] = [decode_second(r) for r in _records(state["max_exp_avg_sq"])]
    return {k: np.concatenate(found[k])[:count].reshape(shape) for k in keys if k in found}


@np.errstate(all="ignore")
def store(moments: Mapping[str, F32], random: Random) -> dict[str, np.ndarray]:
    """Return the records of moments."""
    draws = {k: _blocks(random.bits16(x.shape, STREAMS[k])) for k, x in moments.items()}
    blocks = {key: _blocks(x) for key, x in moments.items()}
    found = {
        key: [encode_second(x, r) for x, r in zip(blocks[key], draws[key], strict=True)]
        for key in moments
        if key != "exp_avg"
    }
    second = [decode_second(record) for record in found["exp_avg_sq"]]
    each = zip(blocks["exp_avg"], second, draws["exp_avg"], strict=True)
    found["exp_avg"] = [encode_first(*one) for one in each]
    return {key: np.concatenate(records) for key, records in found.items()}
