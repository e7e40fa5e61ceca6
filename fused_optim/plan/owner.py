"""What the plan asks of an optimizer, whatever its class."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, ClassVar, Protocol

import torch

from fused_optim.backends.interface import Row
from fused_optim.precision.state import StateTensor


class Owner(Protocol):
    """Whose parameters are updated. Groups are those of torch; ``group`` is what `settings` gives.

    Attributes:
        param_groups: the parameters and what is particular to each group of them.
        state: each parameter's state, by `StateTensor.key`.
        backend: the name that was asked for.
    """

    param_groups: list[dict[str, Any]]
    state: dict[torch.Tensor, dict[str, Any]]
    backend: str
    _family: ClassVar[str]

    def settings(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return a group's hyperparameters and options, the optimizer's where it has none."""
        ...

    def _structure(self, group: dict[str, Any]) -> Hashable:
        """Return what of a group decides on buckets, state and row variants."""
        ...

    def _state_spec(self, group: dict[str, Any], param: torch.Tensor) -> tuple[StateTensor, ...]:
        """Return the state of a parameter, bar what its precision mode adds."""
        ...

    def _row_variant(self, group: dict[str, Any], index: int, param: torch.Tensor) -> Hashable:
        """Return what else than group and step count a parameter's scalars depend on."""
        ...

    def _row(self, group: dict[str, Any], step: int | torch.Tensor, variant: Hashable) -> Row:
        """Return the scalars of a step."""
        ...

    def _begin(self) -> None:
        """Prepare a step that is about to run."""
        ...
