"""What a step does that others pay for: operators on DTensors, and all-reduces with their bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """Notes operators while it is entered.

    Attributes:
        spread: the names of operators that were given a DTensor.
        reduced: for each all-reduce, (ranks of its group, bytes).
        others: the names of other collectives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spread: list[str] = []
        self.reduced: list[tuple[tuple[int, ...], int]] = []
        self.others: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: D105
        if any(issubclass(kind, torch.distributed.tensor.DTensor) for kind in types):
            self.spread.append(str(func))
        if func.namespace in ("c10d", "_c10d_functional") and "allreduce" not in str(func):
            self.others.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch what is done within."""
    watch, all_reduce = Watch(), torch.distributed.all_reduce

    def noted(tensor: torch.Tensor, *args: Any, group: Any = None, **kwargs: Any) -> Any:
        ranks = torch.distributed.get_process_group_ranks(group or torch.distributed.group.WORLD)
        watch.reduced.append((tuple(ranks), tensor.nbytes))
        return all_reduce(tensor, *args, group=group, **kwargs)

    with mock.patch.object(torch.distributed, "all_reduce", noted), watch:
        yield watch
