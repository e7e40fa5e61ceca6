"""Reports what storage does to the next step: lost updates, overflowing values, NaN."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from fused_optim import errors
from fused_optim.backends.interface import STATE_FIELDS
from fused_optim.distributed import geometry
from fused_optim.optimizers import dry_step, validation
from fused_optim.plan import collect


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault of one parameter. ``str`` of a finding is a sentence.

    Attributes:
        kind: ``"vanishing"``, ``"overflow"`` or ``"non-finite"``.
        parameter: the parameter, in the words of errors.
        name: its name, or None where the optimizer was given none.
        group: the number of its group.
        index: its number in the group.
        tensor: ``"gradient"``, ``"parameter"`` or a key of its state.
        dtype: the storage dtype of the tensor.
        mode: the parameter's precision mode; ``"none"`` for float32 and float64.
        fraction: the share of elements, or of updates for ``"vanishing"``, at fault.
        remedy: the advice.
    """

    kind: str
    parameter: str
    name: str | None
    group: int
    index: int
    tensor: str
    dtype: torch.dtype
    mode: str
    fraction: float
    remedy: str

    def __str__(self) -> str:
        """Return a sentence with the remedy."""
        dtype, share = str(self.dtype).removeprefix("torch."), f"{100 * self.fraction:.3g} %"
        does = "add up in the compensation" if self.mode == "kahan" else "change what is stored"
        what = {
            "vanishing": f"{share} of the updates are too small to {does}",
            "overflow": f"{share} of the values of the {self.tensor} overflow {dtype}",
            "non-finite": f"{share} of the values of the {self.tensor} are infinite or NaN",
        }[self.kind]
        mode = "" if self.mode == "none" else f", {self.mode}"
        return f"{self.parameter} ({dtype}{mode}): {what}; {self.remedy}"


class NumericsReport:
    """The method of an optimizer that reports on its next step."""

    @torch.no_grad()
    def check_numerics(self, *, threshold: float = 0.5) -> list[Finding]:
        """Report what 16-bit storage, or a learning rate, does to the step that comes next.

        Call it between ``backward`` and ``step`` (after the step does as well, while gradients are
        still there). It works out the next step without making it, and changes nothing. Findings
        are of three kinds:

        - ``"vanishing"``: updates so small that what is stored would stay as it is. Of the
          elements whose gradient is not zero, more than ``threshold`` are lost. ``kahan`` can
          only lose, now or later, an update that is less than the coarsest spacing of its
          compensation: 2^-16 of the power of two below a bfloat16 weight, 2^-22 of that below a
          float16 weight, or 6e-8 there if that is more. Repeated, such an update comes to a halt,
          so it counts as lost wherever the compensation happens to be. ``stochastic`` loses
          nothing on average: only what float32 would lose as well counts.
        - ``"overflow"``: finite values that are too large for the dtype they are stored in.
        - ``"non-finite"``: infinities and NaN in a gradient, a parameter or a state tensor.

        Cost: about one step of the eager backend, and one wait per device. Its temporaries are of a
        block at a time; for Adafactor of one parameter at a time, 4 bytes for each of its elements
        and a copy of its state. A `step` costs nothing more for it. With a ``GradScaler``, call
        ``scaler.unscale_`` before.

        Args:
            threshold: share of lost updates, in [0, 1), above which a parameter is reported.

        Returns:
            The findings in the order of the parameters, none if all is well. ``str`` of one is a
            sentence with a remedy.

        Raises:
            RuntimeError: no parameter has a gradient, or one has a gradient that `step` refuses.
            NotImplementedError: a parameter of Adafactor is split over processes.
        """
        validation.check_number(threshold, "threshold", low=0.0, high=1.0, open_high=True)
        self._checked_settings()
        pending = collect.parameters_with_gradients(self)
        if not pending:
            raise RuntimeError(
                f"{type(self).__name__}.check_numerics: no parameter has a gradient; call it "
                "after backward and before the gradients are set to None"
            )
        _check_not_split(self, pending)
        kept = [dict(group) for group in self.param_groups], self.grad_norm
        try:
            self._prepare_step()  # AdamWeightDecay's learning rate may be a function of the step
            examined = dry_step.examine(self, pending)
        finally:
            for group, values in zip(self.param_groups, kept[0], strict=True):
                group.update(values)
            self.grad_norm = kept[1]
        return [f for e in examined for f in _findings(self, e, threshold)]


def _check_not_split(optimizer: Any, pending: list) -> None:
    """Refuse a part of a tensor whose step takes sums over the whole."""
    if not optimizer._exchanges():
        return
    for group_index, index, param, _, _ in pending:
        shard = geometry.shard_of(param)
        if shard is not None and shard.over:
            where = errors.place(optimizer.param_groups[group_index], group_index, index)
            raise NotImplementedError(
                f"{type(optimizer).__name__}.check_numerics: {where} is split over processes, and "
                "the step takes sums over all of it; check the unsharded model on a small batch"
            )


def _findings(optimizer: Any, one: dry_step.Examined, threshold: float) -> Iterator[Finding]:
    updates = one.counts.pop(("updates", "parameter"), 0)
    group = optimizer.param_groups[one.place[0]]
    names = group.get("param_names")
    tensors = {"gradient": one.entry.grad, "parameter": one.entry.param}
    for field, key in zip(STATE_FIELDS, one.keys, strict=True):
        if key is not None and field != "rms":
            tensors[key] = getattr(one.entry, field)
    for (kind, tensor), count in one.counts.items():
        stored = geometry.local_of(tensors.get(tensor, one.state.get(tensor)))
        fraction = count / max(1, updates if kind == "vanishing" else stored.numel())
        if count and (kind != "vanishing" or fraction > threshold):
            yield Finding(
                kind=kind,
                parameter=errors.place(group, *one.place),
                name=names[one.place[1]] if names else None,
                group=one.place[0],
                index=one.place[1],
                tensor=tensor,
                dtype=stored.dtype,
                mode=one.mode,
                fraction=fraction,
                remedy=_remedy(kind, tensor, one.mode, stored.dtype),
            )


def _remedy(kind: str, tensor: str, mode: str, dtype: torch.dtype) -> str:
    if kind == "vanishing":
        exact = "'master'" if dtype is torch.float16 else "'split' or 'master'"
        return {
            "nearest": "use low_precision='auto', or 'stochastic' at no cost in memory",
            "kahan": f"use low_precision={exact}, or a larger learning rate",
        }.get(mode, "the learning rate is too small even for float32 values; raise it")
    if kind == "overflow" and dtype is torch.float16:
        if tensor == "parameter":
            return "use bfloat16 parameters or a smaller learning rate: float16 ends at 65504"
        return "use state_dtype=torch.bfloat16: float16 ends at 65504"
    if kind == "overflow":
        return "the gradients are too large; clip them with max_grad_norm"
    if tensor == "gradient":
        return "skip this step, or find where the loss or its derivative is not finite"
    return "it will not recover; go back to an earlier checkpoint"
