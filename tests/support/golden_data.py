"""Golden trajectories of the peers, recorded once from the real libraries.

``golden_torch.json`` comes from transformers 4.38 on torch, ``golden_tf.json`` from its TensorFlow
half (float32). Both used the inputs that `initial` and `gradient` generate.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_FOLDER = Path(__file__).parent / "golden"


def initial(shape: tuple[int, ...], scale: float = 0.1) -> Array:
    """Return the starting parameter: sin(scale * (i + 1)) over row-major i."""
    return np.sin(scale * (np.arange(_numel(shape)) + 1)).reshape(shape)


def gradient(t: int, shape: tuple[int, ...]) -> Array:
    """Return the gradient of step t = 1, 2, ...: every third one is five times as large."""
    wave = np.cos(0.3 * t + 0.17 * np.arange(_numel(shape)))
    return (wave * (5 if t % 3 == 0 else 1)).reshape(shape)


def _numel(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


@dataclass(frozen=True)
class TorchCase:
    """A run of transformers' AdamW or Adafactor.

    Attributes:
        name: unique among all cases, fit for a pytest id.
        optimizer: "AdamW" or "Adafactor".
        shape: of the one parameter.
        dtype: of the parameter and gradients: "float64", "float32", "bfloat16" or "float16".
        kwargs: the constructor's arguments.
        trajectory: the parameter after each step, in float64.
        state: the tensors of the final state, in float64 and their real shapes.
    """

    name: str
    optimizer: str
    shape: tuple[int, ...]
    dtype: str
    kwargs: dict[str, Any]
    trajectory: list[Array]
    state: dict[str, Array]


def torch_cases() -> list[TorchCase]:
    """Return every recorded torch run."""
    data = json.loads((_FOLDER / "golden_torch.json").read_text())
    optimizers = {"AdamW": data["adamw"], "Adafactor": data["adafactor"]}
    return [
        _torch_case(optimizer, key, entry)
        for optimizer, entries in optimizers.items()
        for key, entry in entries.items()
    ]


def _torch_case(optimizer: str, key: str, entry: dict[str, Any]) -> TorchCase:
    shape = tuple(entry["shape"])
    kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["kwargs"].items()}
    kwargs.pop("no_deprecation_warning", None)
    shapes = {"exp_avg_sq_row": shape[:-1], "exp_avg_sq_col": shape[:-2] + shape[-1:], "RMS": ()}
    tensors = {key: value for key, value in entry["state"].items() if key != "step"}
    state = {key: np.array(v).reshape(shapes.get(key, shape)) for key, v in tensors.items()}
    trajectory = [np.array(p).reshape(shape) for p in entry["traj"]]
    name = f"{optimizer}-{key}".replace("|", "-").replace(" ", "").replace("torch.", "")
    dtype = entry["dtype"].removeprefix("torch.")
    return TorchCase(name, optimizer, shape, dtype, kwargs, trajectory, state)


@dataclass(frozen=True)
class TFCase:
    """A run of the TensorFlow AdamWeightDecay on two variables, a matrix and a vector.

    Attributes:
        name: the key in the file.
        kwargs: AdamWeightDecay's arguments but for clipping; the learning rate is 0.1.
        clip: ``clipvalue``, ``clipnorm`` or ``global_clipnorm``, applied in that order.
        excluded: names of variables that do not decay.
        steps: how often gradients were applied.
        expected: final values by name, in float32.
    """

    name: str
    expected: dict[str, Array]
    kwargs: dict[str, Any] = field(default_factory=dict)
    clip: dict[str, float] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    steps: int = 4


TF_SHAPES: dict[str, tuple[int, ...]] = {"kernel": (2, 3), "bias": (3,)}
TF_SCALES = {"kernel": 0.1, "bias": 0.2}
"""Shapes and `initial` scales of the two variables."""

_WD = {"weight_decay_rate": 0.1}
_TF_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "wd": {"kwargs": _WD},
    "wd_excl": {"kwargs": _WD, "excluded": ("bias",)},
    "amsgrad": {"kwargs": _WD | {"amsgrad": True}},
    "clipnorm": {"clip": {"clipnorm": 0.5}},
    "gclip": {"clip": {"global_clipnorm": 0.5}},
    "clipvalue": {"clip": {"clipvalue": 0.2}},
    "decay": {"kwargs": _WD | {"decay": 0.5}},
    "eps": {"kwargs": {"epsilon": 0.1}},
    "clipvalue+clipnorm": {
        "kwargs": {"epsilon": 0.1},
        "clip": {"clipvalue": 0.2, "clipnorm": 0.3},
    },
}


def warmup_then_linear(step: int) -> float:
    """create_optimizer(0.1, 6, 2, min_lr_ratio=0.1)'s schedule, written out."""
    return 0.1 * step / 2 if step < 2 else 0.09 * (1 - min(step - 2, 4) / 4) + 0.01


def tf_cases() -> list[TFCase]:
    """Return every recorded TensorFlow run with dense gradients."""
    data = json.loads((_FOLDER / "golden_tf.json").read_text())
    cases = [
        TFCase(name, _by_name(data[name][0]), steps=data[name][1], **settings)
        for name, settings in _TF_CASES.items()
    ]
    # create_optimizer's own epsilon, and its list of what does not decay, which names "bias".
    schedule: Callable[[int], float] = warmup_then_linear
    settings = _WD | {"learning_rate": schedule, "epsilon": 1e-8}
    expected = _by_name(data["create_optimizer"])
    return [*cases, TFCase("create_optimizer", expected, settings, {}, ("bias",), steps=6)]


def _by_name(values: list[Any]) -> dict[str, Array]:
    return {
        name: np.array(value).reshape(TF_SHAPES[name])
        for name, value in zip(TF_SHAPES, values, strict=True)
    }


def tf_sparse_case() -> tuple[Array, list[Array], Array]:
    """Return start, dense gradients of three steps and result of the run with sparse gradients.

    Duplicate indices are summed; lr 0.1 and weight decay 0.1 act on every row.
    """
    first, later = np.zeros((4, 2)), np.zeros((4, 2))
    first[1] = [4, 6]  # rows [1, 2] and [3, 4], both for index 1
    later[1], later[2] = [1, 2], [3, 4]
    data = json.loads((_FOLDER / "golden_tf.json").read_text())
    return np.ones((4, 2)), [first, later, later], np.array(data["sparse"])
