"""Reading and writing what optimizers store, in the form that the numpy references take."""

from __future__ import annotations

from typing import Any

import numpy as np
import reference_storage
import torch
from oracle import Random
from tolerances import dtype_name

EXTRA = {"kahan": "compensation", "split": "remainder", "master": "master"}


def sample(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> Any:
    """Return normal numbers of many magnitudes, from 10**low to 10**high."""
    return rng.normal(size=shape) * 10.0 ** rng.uniform(low, high, shape)


def bits(tensor: torch.Tensor) -> np.ndarray:
    """Return a copy of a tensor as the references take it: 16-bit floats by uint16 patterns."""
    tensor = tensor.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        return np.array(tensor.view(torch.int16).numpy()).view(np.uint16)
    return np.array(tensor.numpy())


@torch.no_grad()
def write_bits_(tensor: torch.Tensor, values: np.ndarray) -> None:
    """Store what `bits` returned, on any device."""
    values = np.array(values)
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor.copy_(torch.from_numpy(values.view(np.int16)).view(tensor.dtype))
    else:
        tensor.copy_(torch.from_numpy(values))


def encode_(p: torch.Tensor, state: dict[str, Any], value: np.ndarray, mode: str) -> None:
    """Make a parameter and its extra state stand for ``value``."""
    if p.dtype is torch.float64:
        write_bits_(p, value)
        return
    name, value = dtype_name(p.dtype), np.asarray(value, np.float32)
    stored, extra = reference_storage.encode(value, name, mode, Random(seed=1))
    write_bits_(p, stored)
    for key, array in extra.items():
        write_bits_(state[key], array)


def decoded(p: torch.Tensor, state: dict[str, Any], mode: str) -> np.ndarray:
    """Return the value that a parameter and its extra state stand for, in float64."""
    if p.dtype is torch.float64:
        return bits(p)
    extra = {key: bits(state[key]) for key in EXTRA.values() if key in state}
    value = reference_storage.decode(bits(p), extra, dtype_name(p.dtype), mode)
    return value.astype(np.float64)


def set_gradient(p: torch.Tensor, value: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Give ``p`` a gradient of any dtype and return what the update sees of it, in float64."""
    grad = torch.from_numpy(np.array(value)).to(device=p.device, dtype=dtype)
    p.grad = grad if dtype is p.dtype else None
    p.main_grad = None if dtype is p.dtype else grad
    seen = grad if p.dtype is torch.float64 else grad.float()
    return seen.cpu().double().numpy()
