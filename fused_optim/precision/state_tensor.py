"""One tensor of a parameter's state: its shape and place, and which values it may take."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from fused_optim import errors
from fused_optim.distributed import geometry, placement
from fused_optim.precision import checks, packed_state, state_values

_SHAPES = {
    "like": lambda shape: shape,
    "rows": lambda shape: shape[:-1],
    "cols": lambda shape: shape[:-2] + shape[-1:],
    "rows_keepdim": lambda shape: (*shape[:-1], 1),
    "cols_keepdim": lambda shape: (*shape[:-2], 1, shape[-1]),
    "scalar": lambda shape: (),
    "records": packed_state.stored_shape,
}

_REDUCED = {"rows": -1, "cols": -2, "rows_keepdim": -1, "cols_keepdim": -2}
"""Over which dimension of the parameter a kind of statistics is summed."""


@dataclasses.dataclass(frozen=True, slots=True)
class StateTensor:
    """One state tensor of a parameter.

    Attributes:
        key: in ``optimizer.state[p]``.
        field: of the `fused_optim.backends.interface.TensorEntry` that hands it to a backend.
        dtype: of its storage.
        kind: a key of the table above: its shape, from the parameter's.
        needed: whether a saved state without it is incomplete.
        may_begin_late: whether zeros are right for a parameter that has made steps without it, as
            where an option was turned on in the middle of training.
        unit: the key of the second moment by whose root a first moment is measured in 8 bits.
    """

    key: str
    field: str
    dtype: torch.dtype
    kind: str = "like"
    needed: bool = True
    may_begin_late: bool = False
    unit: str | None = None

    @property
    def is_moment(self) -> bool:
        """Whether it has a value for each element of the parameter, and may be kept in records."""
        return self.field != "extra" and self.kind in ("like", "records")

    def repacks(self, value: Any) -> bool:
        """Return whether a value is records where it should be floats, or floats for records."""
        if not self.is_moment or not isinstance(value, torch.Tensor):
            return False
        return (value.dtype is torch.uint8) != (self.kind == "records")

    def _form_of(self, value: torch.Tensor) -> StateTensor:
        """Return this tensor as ``value`` holds it: in records, or a float for each element."""
        if not self.repacks(value):
            return self
        if self.kind == "like":
            return dataclasses.replace(self, kind="records", dtype=torch.uint8)
        return dataclasses.replace(self, kind="like", dtype=torch.float32)

    def shape(self, param: torch.Tensor) -> tuple[int, ...]:
        """Return the tensor's shape for ``param``; of a DTensor's, that of the whole."""
        return tuple(_SHAPES[self.kind](tuple(param.shape)))

    def placements(self, param: torch.Tensor) -> tuple | None:
        """Return the placements of the tensor for a DTensor ``param``, or None for a plain tensor.

        What the parameter is split over in a dimension that is summed is replicated.
        """
        if not geometry.is_dtensor(param) or self.kind == "scalar":
            return None
        given, ndim = param.placements, param.dim()
        if self.kind not in _REDUCED:
            return tuple(given)
        return placement.without_dim(
            given, ndim, ndim + _REDUCED[self.kind], keepdim=self.kind.endswith("keepdim")
        )

    def zeros(self, param: torch.Tensor) -> torch.Tensor:
        """Return a new tensor of zeros for ``param``, in its memory format and on its device."""
        local = geometry.local_of(param).detach()
        if self.kind == "like":
            new = torch.zeros_like(local, dtype=self.dtype, memory_format=torch.preserve_format)
        else:
            new = torch.zeros(self.local_shape(param), dtype=self.dtype, device=local.device)
        return self._placed(new, param)

    def local_shape(self, param: torch.Tensor) -> tuple[int, ...]:
        """Return the shape of this process's part of the tensor for ``param``."""
        if self.kind == "records" and geometry.is_dtensor(param):
            mesh, placements = param.device_mesh, self.placements(param)
            return geometry.shard_at(mesh, placements, self.shape(param)).shape
        return self.shape(geometry.local_of(param))

    def local_bytes(self, param: torch.Tensor) -> int:
        """Return how many bytes this process keeps of the tensor for ``param``."""
        return math.prod(self.local_shape(param)) * self.dtype.itemsize

    def _placed(self, local: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
        """Return what state keeps of this process's part: a DTensor where the parameter is one."""
        placements = self.placements(param)
        if placements is None:
            return local
        return placement.wrapped(local, param.device_mesh, placements, self.shape(param))

    def converted(self, value: Any, param: torch.Tensor) -> torch.Tensor:
        """Return ``value``, a tensor, number or list, as this state tensor of ``param``.

        For a DTensor parameter, a DTensor of its mesh is redistributed where it has to be, and of a
        whole tensor this process takes its part.

        Raises:
            ValueError: it is none of these, not of real numbers, on another mesh, or has another
                shape, dimensions of size 1 left aside.
        """
        device, shape = geometry.local_of(param).device, self.shape(param)
        placements = self.placements(param)
        value = state_values.as_tensor(
            self.key, value, device, sharded=placements is not None, packed=self.is_moment
        )
        form = self._form_of(value)
        if form is not self:
            return form.converted(value, param)
        if tuple(value.shape) != shape:
            if [n for n in value.shape if n != 1] != [n for n in shape if n != 1]:
                raise ValueError(
                    f"state {self.key!r} has shape {tuple(value.shape)}, but a parameter of shape "
                    f"{tuple(param.shape)} needs {shape}; load a state of the same model"
                )
            value = value.reshape(shape)
        if placements is not None:
            with errors.naming(f"state {self.key!r} "):
                value = placement.part_of(value, param.device_mesh, placements)
        missing = checks.memory_missing(value)
        if missing is not None:
            raise ValueError(f"state {self.key!r} {missing}; load a state that is in memory")
        if checks.overlaps(value):
            value = value.clone(memory_format=torch.contiguous_format)
        if self.key == "remainder":
            value = state_values.remainder_bits(value)
        if self.kind == "records":
            value = value.contiguous()
        return self._placed(value.to(device=device, dtype=self.dtype), param)

    def check(self, value: Any, param: torch.Tensor) -> None:
        """Refuse a value that an update of ``param`` could not be given.

        Another dtype or device is no fault: `ensure` brings the tensor to the right one.

        Raises:
            ValueError: ``value`` is no dense tensor of real numbers in this tensor's shape, with
                memory of its own for each element; or not where the parameter's parts are.
        """
        if value is None:
            return
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"state {self.key!r} is {value!r}, not a tensor; {state_values.REMEDY}"
            )
        form = self._form_of(value)
        if form is not self:
            form.check(value, param)
            return
        placements = self.placements(param)
        state_values.check_kind(
            self.key,
            value,
            geometry.local_of(param).device,
            sharded=placements is not None,
            packed=self.is_moment,
        )
        if tuple(value.shape) != self.shape(param):
            raise ValueError(
                f"state {self.key!r} has shape {tuple(value.shape)}, but the parameter has shape "
                f"{tuple(param.shape)} and needs {self.shape(param)}: one of them was replaced or "
                f"resized; {state_values.REMEDY}"
            )
        if placements is not None:
            self._check_place(value, param, placements)
        fault = checks.memory_fault(geometry.local_of(value))
        if fault is not None:
            raise ValueError(f"state {self.key!r} {fault}; {state_values.REMEDY}")

    def _check_place(self, value: torch.Tensor, param: torch.Tensor, placements: tuple) -> None:
        if not geometry.is_dtensor(value):
            raise ValueError(
                f"state {self.key!r} is no DTensor and the parameter is one; load it with "
                "load_state_dict, which takes this process's part of whole tensors"
            )
        fault = placement.fault_of_place(value, param.device_mesh, placements)
        if fault is not None:
            raise ValueError(f"state {self.key!r} {fault}; {state_values.REMEDY}")
