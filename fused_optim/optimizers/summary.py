"""What an optimizer says of itself when it is printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from fused_optim.backends import dispatch
from fused_optim.distributed import geometry
from fused_optim.plan import collect
from fused_optim.precision import checks, state_values


@dataclasses.dataclass(slots=True)
class _Alike:
    """Parameters of a group that are updated in the same way, and what they take together."""

    tensors: int = 0
    elements: int = 0
    state_bytes: int = 0

    @property
    def size(self) -> str:
        """Their number."""
        return f"{_counted(self.tensors, 'tensor')}, {_counted(self.elements, 'element')}"

    @property
    def state_each(self) -> str:
        """The bytes of state that one element takes."""
        return f"{self.state_bytes / self.elements:.4g}" if self.elements else "0"


class Summary:
    """The part of an optimizer that prints it. It changes nothing and reads nothing from a GPU."""

    param_groups: list[dict[str, Any]]
    state: Mapping[torch.Tensor, dict[str, Any]]
    backend: str
    settings: Callable[[dict[str, Any]], dict[str, Any]]
    _attributes: Sequence[str]

    def __repr__(self) -> str:
        """Show each group's options, parameters, precision, backend and bytes of state."""
        lines, whole = [f"{type(self).__name__} ("], _Alike()
        for index, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {index}")
            settings = self.settings(group)
            names = sorted(settings.keys() - {"params", "param_names"})
            lines += [f"    {name}: {_shown(settings[name])}" for name in names]
            for what, alike in self._alike(index, group).items():
                lines.append(f"    parameters: {alike.size}{what}")
                lines[-1] += f", {alike.state_each} bytes of state each" * bool(alike.state_bytes)
                whole.elements += alike.elements * bool(alike.state_bytes)
                whole.state_bytes += alike.state_bytes
        lines += [f"{name}: {_shown(value)}" for name, value in self._whole_options()]
        held = sum(_bytes(value) for kept in self.state.values() for value in kept.values())
        lines.append(
            f"state: {held:,} bytes now, {whole.state_bytes:,} once every parameter has its own, "
            f"{whole.state_each} per element"
        )
        return "\n".join([*lines, ")"])

    def _whole_options(self) -> Iterator[tuple[str, Any]]:
        """Yield the options of the whole optimizer, by name."""
        for name in self._attributes:
            yield name, getattr(self, name)
            if name == "backend":
                try:
                    asked, setting = dispatch.resolve(self.backend)
                except ValueError as error:
                    yield "backend, as it is set", error
                else:
                    if asked != self.backend:
                        yield setting, asked

    def _alike(self, index: int, group: dict[str, Any]) -> dict[str, _Alike]:
        """Return a group's parameters by what is said of them."""
        found: dict[str, _Alike] = {}
        for param in group["params"]:
            lazy = torch.nn.parameter.is_lazy(param)
            what, needed = self._update_of(index, param)
            alike = found.setdefault(what, _Alike())
            alike.tensors += 1
            alike.elements += 0 if lazy else geometry.local_of(param).numel()
            alike.state_bytes += needed
        return found

    def _update_of(self, index: int, param: torch.Tensor) -> tuple[str, int]:
        """Return how a parameter is updated, in words, and how many bytes of state that takes."""
        if torch.nn.parameter.is_lazy(param):
            return ", lazy: without memory as yet", 0
        local = geometry.local_of(param)
        where = f" of {str(param.dtype).removeprefix('torch.')} on {local.device}"
        where += ", this process's parts of DTensors" * geometry.is_dtensor(param)
        if not checks.trains(param):
            return f"{where}, frozen", 0
        try:
            (kind,) = collect.kinds(self, [(index, param)])
        except (RuntimeError, ValueError, Warning) as error:  # what a step would say
            return f"{where}, which can't be updated: {error}", 0
        needed = sum(tensor.local_bytes(param) for tensor in kind.spec)
        needed += state_values.STEP_DTYPE.itemsize * kind.key.capturable
        mode = "" if kind.key.mode == "none" else f", precision {kind.key.mode}"
        return f"{where}{mode}, backend {kind.backend}", needed


def _bytes(value: Any) -> int:
    """Return how much of a value of the state lies in this process's tensors."""
    if not isinstance(value, torch.Tensor):
        return 0
    local = geometry.local_of(value)
    return local.numel() * local.element_size()


def _shown(value: Any) -> str:
    """Return a setting as text; of a tensor on a device its place, as reading would wait for it."""
    if isinstance(value, torch.Tensor) and value.device.type != "cpu":
        return f"<tensor on {value.device}>"
    if type(value) in (tuple, list) and any(isinstance(one, torch.Tensor) for one in value):
        return f"({', '.join(map(_shown, value))})"
    return str(value)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
