"""How the bit reference stores parameters and moments, and reads them back.

Stored 16-bit values are uint16 bit patterns, as in `oracle_rounding`; float32 ones are float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from oracle_random import STREAMS, Random, round_stochastic
from oracle_rounding import (
    F32,
    kahan_decode,
    kahan_encode,
    master_decode,
    round_nearest,
    show_master,
    split_decode,
    split_encode,
    widen,
)

State = Mapping[str, np.ndarray]


def moment_dtype(key: str, state_dtype: str) -> str:
    """Return a moment's storage dtype: float16, with its narrow range, holds ``exp_avg`` only."""
    return "float32" if state_dtype == "float16" and key != "exp_avg" else state_dtype


def load_moment(stored: np.ndarray | None, shape: tuple[int, ...], key: str, dtype: str) -> F32:
    """Return a stored moment as float32; zeros where there is none yet."""
    if stored is None:
        return np.zeros(shape, np.float32)
    dtype = moment_dtype(key, dtype)
    return np.asarray(stored, np.float32) if dtype == "float32" else widen(stored, dtype)


def store_moment(x: F32, key: str, state_dtype: str, random: Random) -> np.ndarray:
    """Round a moment for storage: bfloat16 in random direction, float16 to nearest."""
    dtype = moment_dtype(key, state_dtype)
    if dtype == "float32":
        return x
    if dtype == "float16":
        return round_nearest(x, dtype)
    return round_stochastic(x, random.bits16(x.shape, STREAMS[key]), dtype)


def decode(p: np.ndarray, state: State, dtype: str, mode: str) -> F32:
    """Return the float32 value a stored parameter stands for; values written to it win."""
    if mode == "none":
        return np.asarray(p, np.float32)
    if mode == "kahan" and "compensation" in state:
        return kahan_decode(p, state["compensation"], dtype)
    if mode == "split" and "remainder" in state:
        return split_decode(p, state["remainder"])
    if mode == "master" and "master" in state:
        return master_decode(p, state["master"], dtype)
    return widen(p, dtype)


def encode(
    x: F32, dtype: str, mode: str, random: Random
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the stored form of a parameter's float32 value and what its mode keeps beside it."""
    if mode == "none":
        return x, {}
    if mode == "stochastic":
        return round_stochastic(x, random.bits16(x.shape, STREAMS["param"]), dtype), {}
    if mode == "kahan":
        p, compensation = kahan_encode(x, dtype)
        return p, {"compensation": compensation}
    if mode == "split":
        p, remainder = split_encode(x)
        return p, {"remainder": remainder}
    if mode == "master":
        return show_master(x, dtype), {"master": x}
    return round_nearest(x, dtype), {}
