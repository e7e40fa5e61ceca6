"""Runs the ops of a step on one bucket: on its tensors, or on the tables of its plan."""

from __future__ import annotations

from typing import Any

import torch

from fused_optim.backends import dispatch
from fused_optim.backends.interface import Bucket, BucketKey, Launch
from fused_optim.plan.tables import Plan


class Work:
    """A bucket in a step: tensors that are updated together.

    Attributes:
        key: the bucket's.
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
            # Triton's cache is a folder, and access to it may fail. That happens before a kernel
            # runs; and before the first of an update, whose kernels are compiled together.
            if name != "triton" or self.bucket is None or self.key.capturable:
                raise
            dispatch.give_up("triton", error)
            self.plan, self.bucket.backend = None, "eager"
            return self.run(op, launch)

    def shard_sums(self, index: int) -> dict[str, torch.Tensor]:
        """Return the sums of a tensor's part that go over processes before F3, to write to."""
        if self.plan is None:
            return dispatch.load("eager").shard_sums(self.bucket, index)
        return dispatch.load(self.plan.backend).shard_sums(*self.plan.scratch_of(index))

    def shard_update_sum(self, index: int) -> torch.Tensor | None:
        """Return F6 of a tensor's part, likewise; None in a step that eager skips."""
        if self.plan is None:
            return dispatch.load("eager").shard_update_sum(self.bucket, index)
        scratch, shape, _ = self.plan.scratch_of(index)
        return dispatch.load(self.plan.backend).shard_update_sum(scratch, shape)

    def written(self) -> list[torch.Tensor]:
        """Return the tensors that kernels wrote to. torch counts what its own operators write."""
        return [] if self.plan is None else self.bucket.written()
