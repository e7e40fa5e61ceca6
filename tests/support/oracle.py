"""The test-suite's float64 oracles, under one name.

They are written from the papers and share no code with the package or with torch's optimizers, so
that a mistake has to be made twice to go unseen. Each optimizer is a pure function
``step(p, g, state, t, **hyperparameters) -> (p, state)`` on float64 arrays.
"""

from __future__ import annotations

from oracle_adafactor import adafactor, adafactor_alpha, adafactor_torch, relative_step_size
from oracle_adamw import (
    adam_torch,
    adam_weight_decay_tf,
    adamw,
    adamw_torch,
    adamw_transformers,
)
from oracle_clip import (
    clip_coefficient_tf,
    clip_coefficient_torch,
    clip_global_norm_tf,
    clip_global_norm_torch,
    clip_norm,
    clip_value,
    global_norm,
)
from oracle_lion import lion
from oracle_random import STREAMS, Random, philox4x32, round_stochastic
from oracle_rounding import (
    bits,
    from_bits,
    kahan_decode,
    kahan_encode,
    master_decode,
    round_half_away,
    round_nearest,
    show_master,
    split_decode,
    split_encode,
    widen,
)

__all__ = [
    "STREAMS",
    "Random",
    "adafactor",
    "adafactor_alpha",
    "adafactor_torch",
    "adam_torch",
    "adam_weight_decay_tf",
    "adamw",
    "adamw_torch",
    "adamw_transformers",
    "bits",
    "clip_coefficient_tf",
    "clip_coefficient_torch",
    "clip_global_norm_tf",
    "clip_global_norm_torch",
    "clip_norm",
    "clip_value",
    "from_bits",
    "global_norm",
    "kahan_decode",
    "kahan_encode",
    "lion",
    "master_decode",
    "philox4x32",
    "relative_step_size",
    "round_half_away",
    "round_nearest",
    "round_stochastic",
    "show_master",
    "split_decode",
    "split_encode",
    "widen",
]
