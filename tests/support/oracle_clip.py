"""Gradient clipping in float64, by value and by norm, as Keras and torch define it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def clip_value(g: Array, limit: float) -> Array:
    """Keras's ``clipvalue``: every element into [-limit, limit]. NaN stays NaN."""
    return np.minimum(np.maximum(g, -limit), limit)


def clip_norm(g: Array, limit: float) -> Array:
    """Keras's ``clipnorm``: one tensor scaled by ``limit / max(norm, limit)``."""
    return np.asarray(g) * clip_coefficient_tf(global_norm([g]), limit)


def global_norm(grads: Sequence[Array]) -> float:
    """Return the Euclidean norm of all elements of all gradients."""
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(g, np.float64))) for g in grads)))


def clip_coefficient_tf(norm: float, limit: float) -> float:
    """``limit / max(norm, limit)``, for finite norms."""
    return limit / max(norm, limit)


def clip_coefficient_torch(norm: float, limit: float) -> float:
    """``min(1, limit / (norm + 1e-6))``, of torch's ``clip_grad_norm_``; NaN for a NaN norm."""
    return float(np.minimum(1.0, limit / (norm + 1e-6)))


def clip_global_norm_tf(grads: Sequence[Array], limit: float) -> list[Array]:
    """Keras's ``global_clipnorm``: all gradients scaled by one coefficient."""
    coefficient = clip_coefficient_tf(global_norm(grads), limit)
    return [np.asarray(g) * coefficient for g in grads]


def clip_global_norm_torch(grads: Sequence[Array], limit: float) -> list[Array]:
    """torch.nn.utils.clip_grad_norm_ for the Euclidean norm."""
    coefficient = clip_coefficient_torch(global_norm(grads), limit)
    return [np.asarray(g) * coefficient for g in grads]
