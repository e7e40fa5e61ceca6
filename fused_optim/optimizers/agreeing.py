"""What processes have to agree on: what they optimize, and whether to make a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fused_optim import errors
from fused_optim.backends.interface import Launch
from fused_optim.distributed import agreement, geometry
from fused_optim.plan import collect, upload
from fused_optim.plan.exchange import Exchange
from fused_optim.plan.spread import Spread
from fused_optim.plan.work import Work
from fused_optim.precision import checks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Agreeing:
    """The methods of an optimizer by which its processes agree."""

    param_groups: list[dict[str, Any]]
    clip_group: ProcessGroup | None = None
    skip_nonfinite: bool = False
    check_ranks: bool = True
    _attributes: Sequence[str]
    _options: Mapping[str, Any]
    # The parameters of which other processes have parts. Never saved.
    _spread: Spread = Spread([])
    # Whether the processes were found to optimize the same. Never saved.
    _compared: bool = False
    # What decides on the device whether this step is left out; None where nothing does.
    _found_inf: torch.Tensor | None = None
    _skipped: int | torch.Tensor = 0
    # What `_insist` found in the last step, once the device has come to it.
    _answer: tuple[Callable[[], torch.Tensor], Sequence[int]] | None = None

    @property
    def skipped_steps(self) -> int:
        """How many steps ``skip_nonfinite`` has left out; read from the device if capturable."""
        return int(self._skipped)

    def _overflow(self, on_device: bool) -> torch.Tensor | None:
        """Return the number of processes that want this step left out, or None where nobody asks.

        Args:
            on_device: whether the decision stays on the device.
        """
        found: torch.Tensor | None = getattr(self, "found_inf", None)
        if self.skip_nonfinite:
            grads = collect.gradients(self)
            device = grads[0].device if grads else torch.device("cpu")
            here = checks.any_nonfinite(grads, device)
            found = here if found is None else torch.maximum(here, found.to(here).reshape(()))
        if found is not None:
            found = self._spread.any(found)
            if self.clip_group is not None and self.skip_nonfinite:
                found = found.to(torch.float32, copy=True)
                torch.distributed.all_reduce(found, group=self.clip_group)
        if self.skip_nonfinite:
            self._count_skipped(found != 0, on_device)
        self._found_inf = found
        return found

    def _count_skipped(self, skips: torch.Tensor, on_device: bool) -> None:
        if not on_device:
            self._skipped = int(self._skipped) + int(skips)
            return
        if not isinstance(self._skipped, torch.Tensor):
            self._skipped = torch.full((), self._skipped, dtype=torch.int64, device=skips.device)
        self._skipped.add_(skips.reshape(()))

    def _check_ranks_agree(self, settings: Sequence[dict[str, Any]]) -> None:
        """Compare, before the first step, what the processes optimize.

        Raises:
            RuntimeError: on every process, with what differs.
        """
        if self._compared or not (self.check_ranks and self._spread):
            return
        options = {name: getattr(self, name) for name in self._attributes if name != "clip_group"}
        items = _shown("the option", {**options, **self._options})
        for index, group in enumerate(settings):
            hidden = ("params", "param_names")
            shown = {name: value for name, value in group.items() if name not in hidden}
            items += _shown(f"group {index}'s", shown)
            for place, param in enumerate(group["params"]):
                items.append((errors.place(group, index, place), _description(param)))
        agreement.check(
            self._spread.groups,
            items,
            f"{type(self).__name__}: the processes that share its parameters differ: %s. Give each "
            "the same parameters in the same order, the same groups and options, and gradients of "
            "the same parameters; check_ranks=False leaves out this check",
        )
        self._compared = True

    def _insist(
        self, agreed: torch.Tensor, exchange: Exchange, launched: list[tuple[Work, Launch]]
    ) -> None:
        """Refuse a step for which not all processes have gradients of the same parameters.

        Where the host would have to wait for that, the step changes nothing on any process, and
        the next one raises.

        Raises:
            RuntimeError: on every process, with the first parameter that differs.
        """
        if agreed.device.type == "cpu":
            if not bool(agreed):
                self._tell_gradients(exchange.numbers)
            return
        for work, launch in launched:
            differ = (~agreed).to(work.key.device, torch.float32)
            launch.found_inf = differ if launch.found_inf is None else differ + launch.found_inf
        if not upload.capturing():
            self._answer = upload.fetched(agreed), exchange.numbers

    def _check_last(self) -> None:
        """Refuse to go on from a step that `_insist` has left out on the device."""
        answer, self._answer = self._answer, None
        if answer is not None and not bool(answer[0]()):
            self._tell_gradients(answer[1])

    def _tell_gradients(self, numbers: Sequence[int]) -> None:
        items = [
            (
                f"the gradient of {errors.place(self.param_groups[group], group, index)}",
                "there" if number in numbers else "missing",
            )
            for group, index, param, number in collect.numbered(self)
            if geometry.is_dtensor(param)
        ]
        raise RuntimeError(
            f"{type(self).__name__}: {agreement.difference(self._spread.groups, items)}. Every "
            "process that holds a part of a parameter needs a gradient for it, of zeros where it "
            "has nothing to add, or none of them may have one; nothing was changed"
        )


def _description(param: torch.Tensor) -> str:
    """Return what of a parameter is the same on every process."""
    has = param.grad is not None or getattr(param, "main_grad", None) is not None
    found = f"{param.dtype} of shape {tuple(param.shape)} {'with' if has else 'without'} a gradient"
    if geometry.is_dtensor(param):
        mesh = tuple(param.device_mesh.shape)
        found += f", placed as {param.placements} on a mesh of shape {mesh}"
    return found


def _shown(whose: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return settings as they can be compared: nothing is read from a device."""
    plain = (int, float, str, type(None), tuple, list, torch.dtype)
    return [
        (f"{whose} {name!r}", value if isinstance(value, plain) else type(value).__name__)
        for name, value in sorted(values.items())
    ]
