"""Running the ops of a step on its buckets: in which order, and with which launch parameters."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fused_optim.backends.interface import Bucket, BucketKey, Launch
from fused_optim.distributed import clipping
from fused_optim.ops import FAMILIES, GRADIENT_SUMS
from fused_optim.plan import upload
from fused_optim.plan.exchange import Exchange
from fused_optim.plan.tables import Plan
from fused_optim.plan.work import Work

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Running:
    """The methods of an optimizer that run the ops of a step."""

    _family: ClassVar[str]
    param_groups: list[dict[str, Any]]
    seed: int
    max_grad_norm: float | None
    clip_group: ProcessGroup | None = None
    grad_norm: torch.Tensor | None = None
    # What the last step's buckets add up over processes. Never saved.
    _exchange: Exchange | None = None
    # Tables of the last step. Never saved.
    _plans: Mapping[tuple[BucketKey, str], Plan] = MappingProxyType({})
    # What takes gradients as they arrive, if anything does: fused_optim/optimizers/hooks.py.
    _gradients: Any = None

    def _work_on(self, bucket: Bucket, *, anew: bool) -> Work:
        """Return the work on a bucket, with packed tables if its backend reads tables."""
        if bucket.backend == "eager":
            return Work(bucket.key, bucket, None)
        plan = None if anew else self._plans.get((bucket.key, bucket.backend))
        if plan is None:
            plan = Plan(bucket.key, bucket.backend)
        plan.pack(bucket)
        return Work(bucket.key, bucket, plan)

    def _run_step(self, works: list[Work]) -> None:
        """Run the ops of a step."""
        launched = [(work, self._launch(work.key.device)) for work in works]
        family, sums, exchange = FAMILIES[self._family], None, self._exchange
        if family.statistics is not None:
            sums = [work.run(family.statistics, launch) for work, launch in launched]
        self._clip_launches(launched, sums, exchange)
        for op in family.updates:
            for work, launch in launched:
                work.run(op, launch)
            if op == family.exchanged and exchange is not None:
                exchange.second(works)

    def _clip_launches(
        self,
        launched: list[tuple[Work, Launch]],
        sums: list[torch.Tensor] | None,
        exchange: Exchange | None,
    ) -> None:
        """Add up over processes what comes before clipping, and set the clip coefficients.

        Args:
            launched: the buckets of the step, each with its launch.
            sums: each bucket's sums of squared gradients, where a statistics op returned them.
            exchange: of the parts of tensors in the buckets, or None.
        """
        clips, statistics = self._clips(), FAMILIES[self._family].statistics is not None
        squares: list[torch.Tensor] | None = None
        if clips:
            squares = sums
            if squares is None:
                squares = [work.run(GRADIENT_SUMS, launch) for work, launch in launched]
        together = squares or []
        if exchange is not None and (clips or statistics):
            if upload.capturing():
                raise RuntimeError(
                    f"{type(self).__name__}: step() is being captured into a CUDA graph, and what "
                    "processes add up of parameters that are split can't be; leave the step out of "
                    "the graph, or clip before it by torch.nn.utils.clip_grad_norm_"
                )
            works = [work for work, _ in launched]
            agreed, together = exchange.first(works, squares, statistics=statistics)
            self._insist(agreed, exchange, launched)
        if squares is not None and (together or self.clip_group):
            self._clip(launched, clipping.Squares(squares, together))

    def _exchanges(self) -> bool:
        """Return whether the update itself takes sums over all of a tensor."""
        return FAMILIES[self._family].exchanged is not None

    def _clips(self) -> bool:
        """Return whether any norm of gradients decides on the update."""
        return self.max_grad_norm is not None

    def _clip(self, launched: list[tuple[Work, Launch]], squares: clipping.Squares) -> None:
        """Set the clip coefficient of every bucket's launch.

        Args:
            launched: the buckets of the step, each with its launch.
            squares: the sums of squares of their gradients.
        """
        self.grad_norm = self._global_norm(squares)
        coefficient = (float(self.max_grad_norm) / (self.grad_norm + 1e-6)).clamp(max=1.0)
        for work, launch in launched:
            launch.clip = coefficient.to(work.key.device)

    def _global_norm(self, squares: clipping.Squares) -> torch.Tensor:
        """Return the norm of all gradients together, on the first bucket's device."""
        return clipping.total_norm(squares.together, self.clip_group, self.param_groups)

    def _clips_by_whole_norms(self) -> bool:
        """Return whether clipping would take the norm of a shard for that of a whole gradient."""
        return self.max_grad_norm is not None and self.clip_group is None

    def _clips_together(self) -> bool:
        """Return whether the norm of all gradients decides on the update of each."""
        return self.max_grad_norm is not None

    def _launch(self, device: torch.device) -> Launch:
        scale, found_inf = getattr(self, "grad_scale", None), self._found_inf
        scale = None if scale is None else scale.to(device)
        divisor = None if self._gradients is None else self._gradients.divisor(device)
        if divisor is not None:
            scale = divisor if scale is None else scale * divisor
        return Launch(
            grad_scale=scale,
            found_inf=None if found_inf is None else found_inf.to(device),
            seed=self.seed,
            sums_wanted=self.max_grad_norm is not None,
        )
