"""Translates the state of other optimizers into this package's keys, where that is exact.

For torch's, transformers' and apex's dicts other names are enough (`FusedOptimizer._aliases`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class Layout:
    """The form in which a peer keeps the state of one parameter.

    Attributes:
        owner: the state's name in messages.
        is_it: whether a parameter's state is of this layout.
        translate: returns the state under this package's keys; None if no translation is exact.
        says: the report of a load; without a translation, the advice in the error.
    """

    owner: str
    is_it: Callable[[Mapping[str, Any]], bool]
    translate: Callable[[Mapping[str, Any]], dict[str, Any]] | None
    says: str


def translated(state: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
    """Return a parameter's state under this package's keys, and a note if it was translated.

    Raises:
        ValueError: the state is a peer's and has no exact translation; the message has advice.
    """
    for layout in _LAYOUTS:
        if layout.is_it(state):
            if layout.translate is None:
                raise ValueError(f"the state is {layout.owner}; {layout.says}")
            return layout.translate(state), f"it is {layout.owner}: {layout.says}"
    return state, None


def _has(*keys: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda state: any(key in state for key in keys)


def _is_quantized_bitsandbytes(state: Mapping[str, Any]) -> bool:
    quantized = any(str(key).startswith(("qmap", "absmax")) for key in state)
    first = state.get("state1")
    return quantized or (isinstance(first, torch.Tensor) and first.dtype is torch.uint8)


def _from_bitsandbytes(state: Mapping[str, Any]) -> dict[str, Any]:
    names = {"state1": "exp_avg", "state2": "exp_avg_sq"}
    histories = ("unorm_vec", "gnorm_vec")  # histories of its own clipping
    return {names.get(key, key): value for key, value in state.items() if key not in histories}


def _from_transformer_engine(state: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(state)
    master = result.pop("master_param")
    if isinstance(master, torch.Tensor):
        result["remainder" if master.dtype is torch.int16 else "master"] = master
    return result


def _from_nadam(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != "mu_product"}


def _is_compressed_flashoptim(state: Mapping[str, Any]) -> bool:
    return any("::" in str(key) for key in state)


_LAYOUTS = (
    Layout(
        "bitsandbytes' 8-bit state",
        _is_quantized_bitsandbytes,
        None,
        "its blocks are not translated. Dequantize them with bitsandbytes "
        "(functional.dequantize_blockwise) and save 'exp_avg' and 'exp_avg_sq', or leave the state "
        "out of the dict to start the moments afresh",
    ),
    Layout(
        "bitsandbytes' 32-bit state",
        _has("state1", "state2"),
        _from_bitsandbytes,
        "'state1' was taken as 'exp_avg', 'state2' as 'exp_avg_sq'",
    ),
    Layout(
        "TransformerEngine's state",
        _has("master_param"),
        _from_transformer_engine,
        "'master_param' was taken as the float32 weight, or as its remainder where it has 16 bits",
    ),
    Layout(
        "flashoptim's compressed state",
        _is_compressed_flashoptim,
        None,
        "its groups are not translated. Save it there with compress_state_dict=False",
    ),
    Layout(
        "flashoptim's state with error correction bits",
        _has("error_bits"),
        None,
        "they are scaled differently from any precision mode here. Save it with "
        "master_weight_bits=None, or remove 'error_bits' to go on from the 16-bit weights",
    ),
    Layout(
        "torch.optim.NAdam's state",
        _has("mu_product"),
        _from_nadam,
        "moments and step counts are the same, its momentum schedule does not go on",
    ),
)
