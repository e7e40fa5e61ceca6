"""Sums gradients over micro-batches, as transformers' GradientAccumulator does in TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

import torch
from torch import nn

from fused_optim import precision

_REMEDY = "pass a list with a tensor or None for each parameter: [p.grad for p in parameters]"


class GradientAccumulator:
    """Sums lists of gradients; the user scales the sums and hands them to an optimizer.

    The first call fixes how many gradients there are and which of them are None: a gradient in a
    place that was None is dropped, a None in a place that was not is skipped.

    Args:
        dtype: of the buffers, e.g. ``torch.float32`` so that sums of 16-bit gradients keep what
            each adds. None takes each first gradient's dtype and insists on it, as TensorFlow.

    Raises:
        ValueError: ``dtype`` is not one that can be summed in.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> accumulator = GradientAccumulator()
        >>> for batch in torch.ones(3, 1, 4):
        ...     loss = model(batch).sum()
        ...     accumulator(torch.autograd.grad(loss, list(model.parameters())))
        >>> for p, total in zip(model.parameters(), accumulator.gradients):
        ...     p.grad = total / accumulator.step
        >>> accumulator.reset()

    Source: ``transformers.GradientAccumulator`` 4.38.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        if dtype is not None and dtype not in precision.SUPPORTED_DTYPES:
            raise ValueError(
                f"Invalid dtype: {dtype!r} - should be torch.float32, torch.float64, "
                "torch.bfloat16, torch.float16 or None"
            )
        self._dtype = dtype
        self._buffers: list[torch.Tensor | None] = []
        self._step = 0

    @property
    def step(self) -> int:
        """Calls since the start or the last reset."""
        return self._step

    @property
    def gradients(self) -> list[torch.Tensor | None]:
        """The sums so far; the buffers themselves, which later calls write to.

        Raises:
            ValueError: nothing was accumulated yet.
        """
        if not self._buffers:
            raise ValueError("The accumulator should be called first to initialize the gradients")
        return list(self._buffers)

    @torch.no_grad()
    def __call__(self, gradients: Iterable[torch.Tensor | None]) -> None:
        """Add ``gradients`` to the sums.

        Raises:
            TypeError: they are no list of tensors and Nones; nothing was added.
            ValueError: their number, or the shape, dtype or device of one, is not that of the first
                call, or one is sparse; nothing was added.
        """
        gradients = _listed(gradients)
        buffers = self._buffers or [self._buffer(gradient) for gradient in gradients]
        if len(buffers) != len(gradients):
            raise ValueError(
                f"Expected {len(buffers)} gradients, but got {len(gradients)}; pass those of the "
                "parameters of the first call, None for one that has none"
            )
        added: list[tuple[torch.Tensor, torch.Tensor]] = []
        for index, (buffer, gradient) in enumerate(zip(buffers, gradients, strict=True)):
            if buffer is not None and gradient is not None:
                self._check(index, buffer, gradient)
                added.append((buffer, gradient))
        if added:
            torch._foreach_add_(*map(list, zip(*added, strict=True)))
        self._buffers = buffers
        self._step += 1

    def reset(self) -> None:
        """Set the sums to zero, in place, and the step count to 0."""
        for buffer in self._buffers:
            if buffer is not None:
                buffer.zero_()
        self._step = 0

    def _buffer(self, gradient: torch.Tensor | None) -> torch.Tensor | None:
        return None if gradient is None else torch.zeros_like(gradient, dtype=self._dtype)

    def _check(self, index: int, buffer: torch.Tensor, gradient: torch.Tensor) -> None:
        if gradient.layout is not torch.strided:
            raise ValueError(
                f"gradient {index} has layout {gradient.layout}; only dense ones work, use "
                "sparse=False in the embedding"
            )
        if gradient.dtype not in precision.SUPPORTED_DTYPES:
            raise ValueError(
                f"gradient {index} is {gradient.dtype}, not a float; pass the "
                "gradients of floating-point parameters"
            )
        same_dtype = self._dtype is not None or gradient.dtype is buffer.dtype
        if gradient.shape != buffer.shape or gradient.device != buffer.device or not same_dtype:
            raise ValueError(
                f"gradient {index} is {gradient.dtype} of shape {tuple(gradient.shape)} on "
                f"{gradient.device}, but its sum is {buffer.dtype} of shape {tuple(buffer.shape)} "
                f"on {buffer.device}; gradients must match those of the first call"
            )


def _listed(gradients: Any) -> list[torch.Tensor | None]:
    """Return ``gradients`` as a list; all its elements are tensors or None."""
    # Iterating a tensor would give its slices, a mapping its keys, a set any order.
    no_lists = (torch.Tensor, Mapping, Set, str)
    if isinstance(gradients, no_lists) or not isinstance(gradients, Iterable):
        raise TypeError(f"gradients is {_kind(gradients)}; {_REMEDY}")
    gradients = list(gradients)
    for index, gradient in enumerate(gradients):
        is_tensor = isinstance(gradient, torch.Tensor) and not isinstance(gradient, nn.Parameter)
        if gradient is not None and not is_tensor:
            raise TypeError(f"gradient {index} is {_kind(gradient)}, not a gradient; {_REMEDY}")
    return gradients


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
