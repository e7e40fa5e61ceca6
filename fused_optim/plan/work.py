"""One bucket's way through the ops of a step: on its tensors, or on the tables of its plan."""

from __future__ import annotations

from typing import Any

import torch

from fused_optim.backends import dispatch
from fused_optim.backends.interface import Bucket, BucketKey, Launch
from fused_optim.plan.tables import Plan


class Work:
    """What is updated together.

    Attributes:
        key: what its tensors have in common.
        bucket: the tensors; None in a steady step of a backend that has their tables.
        plan: the tables; None where the eager backend works on the tensors themselves.
    """

    def __init__(self, key: BucketKey, bucket: Bucket | None, plan: Plan | None) -> None:
        self.key = key
        self.bucket = bucket
        self.plan = plan

    def run(self, op: str, launch: Launch) -> Any:
        """Run one op and return what it returned."""
        if self.plan is None:
            return getattr(dispatch.load("eager"), op)(self.bucket, launch)
        name = self.plan.backend
        try:
            return getattr(dispatch.load(name), op)(self.plan.tables(op, launch), launch)
        except OSError as error:
            # Triton's cache is a folder, and may fail like one: before anything ran, and, as an
            # update's kernels are compiled together, before anything of this update did.
            if name != "triton" or self.bucket is None or self.key.capturable:
                raise
            dispatch.give_up("triton", error)
            self.plan, self.bucket.backend = None, "eager"
            return self.run(op, launch)

    def written(self) -> list[torch.Tensor]:
        """Return the tensors that kernels wrote to; torch's own operators count what they write."""
        return [] if self.plan is None else self.bucket.written()
