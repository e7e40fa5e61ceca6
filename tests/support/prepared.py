"""Ops of a backend with kernels, called on buckets: tables are packed as a step packs them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest import mock

from fused_optim.backends import dispatch
from fused_optim.backends.interface import Bucket, Launch, Tables
from fused_optim.plan.tables import Plan


class OnBuckets:
    """A backend whose ops take ``(bucket, launch)``; the ops on one bucket share its plan."""

    def __init__(self, backend: ModuleType) -> None:
        self.backend = backend
        self._plans: dict[int, tuple[Bucket, Plan]] = {}  # with the bucket, which keeps its id

    def __getattr__(self, op: str) -> Callable[[Bucket, Launch], Any]:
        return lambda bucket, launch: getattr(self.backend, op)(
            self.tables(bucket, op, launch), launch
        )

    def plan(self, bucket: Bucket) -> Plan:
        """Return the bucket's plan, packed when it was first asked for."""
        if id(bucket) not in self._plans:
            plan = Plan(bucket.key, "under test")
            plan.pack(bucket)
            self._plans[id(bucket)] = bucket, plan
        return self._plans[id(bucket)][1]

    def tables(self, bucket: Bucket, op: str, launch: Launch | None = None) -> Tables:
        """Return what an op is given."""
        plan = self.plan(bucket)
        with mock.patch.object(dispatch, "load", lambda name: self.backend):
            return plan.tables(op, launch or Launch())
