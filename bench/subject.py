"""A setup with tensors to step on: parameters, gradients and state on a device."""

from __future__ import annotations

import gc
from typing import Any

import torch

from bench import shapes as shape_lists
from bench.setups import DTYPES, MAX_GRAD_NORM, OURS, Setup
from fused_optim import dispatch

_STREAMS = 16  # parameters, and gradients of so many draws less one


class Subject:
    """An optimizer over random parameters, with random gradients, ready to be stepped.

    Every subject over the same list starts from the same values, whatever its optimizer.

    Args:
        setup: which optimizer.
        shapes: a name of `bench.shapes.SHAPES`.
        dtype: a name of `bench.setups.DTYPES`.
        device: where the tensors live.
        backend: of this package's own optimizers; None leaves it to them.
    """

    def __init__(
        self,
        setup: Setup,
        shapes: str,
        dtype: str,
        device: torch.device,
        backend: str | None = None,
    ) -> None:
        self.setup, self.dtype = setup, dtype
        self.shapes = shape_lists.SHAPES[shapes]
        self.device = device
        self.params: list[torch.nn.Parameter] = []
        for index in range(len(self.shapes)):
            self.params.append(torch.nn.Parameter(self.initial(index)))
        self.set_gradients()
        self.optimizer = setup.optimizer(self.params, backend)

    def initial(self, index: int) -> torch.Tensor:
        """Return what a parameter was before the first step."""
        return self._random(index, stream=0).mul_(0.02).to(DTYPES[self.dtype])

    def set_gradients(self, scale: float = 1.0, draw: int = 0) -> None:
        """Give parameters fresh gradients, times ``scale``: a clipping step writes to them."""
        for index, param in enumerate(self.params):
            param.grad = self._random(index, 1 + draw).mul_(scale * 1e-3).to(param.dtype)

    def step(self) -> None:
        """Step as a user would, clipping included."""
        if self.setup.clips:
            torch.nn.utils.clip_grad_norm_(self.params, MAX_GRAD_NORM)
        self.optimizer.step()

    @property
    def tensors(self) -> int:
        """The number of parameter tensors."""
        return len(self.params)

    @property
    def parameters(self) -> int:
        """The number of elements of all parameters."""
        return shape_lists.numel(self.shapes)

    @property
    def backend(self) -> str | None:
        """The backend that this package's own optimizer uses here."""
        if self.setup.source != OURS:
            return None
        op, dtype = self.optimizer._updates[-1], DTYPES[self.dtype]
        return dispatch.choose(self.optimizer.backend, op, self.device, dtype)

    def state_bytes(self) -> int:
        """Bytes of the optimizer's state, after a step."""
        return sum(_tensor_bytes(s) for s in self.optimizer.state.values())

    def param_bytes(self) -> int:
        """Bytes of the parameters."""
        return sum(p.numel() * p.element_size() for p in self.params)

    def _random(self, index: int, stream: int) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(_STREAMS * index + stream)
        shape = self.shapes[index]
        return torch.randn(shape, generator=generator, device=self.device)


def free() -> None:
    """Give back the memory of subjects that went out of scope."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tensor_bytes(value: Any) -> int:
    """Bytes of the tensors within a state entry, whatever a peer wraps them in."""
    if isinstance(value, dict):
        return sum(_tensor_bytes(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_tensor_bytes(v) for v in value)
    if isinstance(value, torch.Tensor):
        if hasattr(value, "__tensor_flatten__"):  # quantized subclasses, as torchao's
            names, _ = value.__tensor_flatten__()
            return sum(_tensor_bytes(getattr(value, name)) for name in names)
        return value.numel() * value.element_size()
    if hasattr(value, "__dict__"):  # quantized wrappers that are no tensors, as flashoptim's
        return _tensor_bytes(vars(value))
    return 0
