"""The protocol by which the plan asks an optimizer, whatever its class."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, ClassVar, Protocol

import torch

from fused_optim.backends.interface import Row
from fused_optim.precision.state import StateTensor


class Owner(Protocol):
    """An optimizer as the plan knows it. A ``group`` argument is what `settings` returned.

    Attributes:
        param_groups: torch's groups: parameters, and the options that a group has itself.
        state: each parameter's state, by `StateTensor.key`.
        backend: the name that was asked for.
    """

    param_groups: list[dict[str, Any]]
    state: dict[torch.Tensor, dict[str, Any]]
    backend: str
    _family: ClassVar[str]

    def settings(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return a group's options and hyperparameters, the optimizer's for missing ones."""
        ...

    def _structure(self, group: dict[str, Any]) -> Hashable:
        """Return the options of a group that decide on buckets, state and row variants."""
        ...

    def _state_spec(self, group: dict[str, Any], param: torch.Tensor) -> tuple[StateTensor, ...]:
        """Return a parameter's state, but for the tensor that its precision mode adds."""
        ...

    def _row_variant(self, group: dict[str, Any], index: int, param: torch.Tensor) -> Hashable:
        """Return what a parameter's scalars depend on beside its group and its step count."""
        ...

    def _row(self, group: dict[str, Any], step: int | torch.Tensor, variant: Hashable) -> Row:
        """Return the scalars of a step."""
        ...

    def _begin(self) -> None:
        """Prepare a step that is about to run."""
        ...
