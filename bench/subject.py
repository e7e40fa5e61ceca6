"""A setup with tensors to step on: parameters, gradients and state on a device."""

import gc
from typing import Any

import torch

from bench import shapes as shape_lists
from bench.setups import DTYPES, MAX_GRAD_NORM, OURS, Setup
from fused_optim.backends import dispatch
from fused_optim.ops import FAMILIES

_STREAMS = 16  # parameters, and gradients of so many draws less one


class Subject:
    """An optimizer over random parameters, with random gradients, ready to be stepped.

    Every subject over the same list starts from the same values, whatever its optimizer. ``shapes``
    and ``dtype`` are names; ``backend`` is for this package's own optimizers.
    """

    def __init__(
        self,
        setup: Setup,
        shapes: str,
        dtype: str,
        device: torch.device,
        backend: str | None = None,
    ) -> None:
        self.setup, self.dtype, self.device = setup, dtype, device
        self.shapes = shape_lists.SHAPES[shapes]
        self.tensors, self.parameters = len(self.shapes), shape_lists.numel(self.shapes)
        self.params = [torch.nn.Parameter(self.initial(i)) for i in range(self.tensors)]
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
        if self.setup.clips:
            torch.nn.utils.clip_grad_norm_(self.params, MAX_GRAD_NORM)
        self.optimizer.step()

    @property
    def backend(self) -> str | None:
        """The backend that this package's own optimizer uses here."""
        if self.setup.source != OURS:
            return None
        op, dtype = FAMILIES[self.optimizer._family].updates[-1], DTYPES[self.dtype]
        return dispatch.choose(self.optimizer.backend, op, self.device, dtype)

    def state_bytes(self) -> int:
        """Return the bytes of the optimizer's state, after a step."""
        return sum(map(_tensor_bytes, self.optimizer.state.values()))

    def param_bytes(self) -> int:
        return sum(p.nbytes for p in self.params)

    def _random(self, index: int, stream: int) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(_STREAMS * index + stream)
        return torch.randn(self.shapes[index], generator=generator, device=self.device)


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tensor_bytes(value: Any) -> int:
    """Return the bytes of the tensors within a state entry, whatever a peer wraps them in."""
    if isinstance(value, dict):
        return sum(map(_tensor_bytes, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_tensor_bytes, value))
    if hasattr(value, "__tensor_flatten__"):  # quantized subclasses, as torchao's
        return sum(_tensor_bytes(getattr(value, name)) for name in value.__tensor_flatten__()[0])
    if isinstance(value, torch.Tensor):
        return value.nbytes
    # Quantized wrappers that are no tensors, as flashoptim's.
    return _tensor_bytes(vars(value)) if hasattr(value, "__dict__") else 0
