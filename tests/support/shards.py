"""Parameters that are spread over processes, and the same whole: for distributed workers."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard

from fused_optim.distributed.geometry import shard_at
from fused_optim.distributed.placement import wrapped

Placed = tuple[str, tuple]
"""(name of a mesh, placements on it); an empty name is no mesh."""

PLAIN: Placed = ("", ())


@contextlib.contextmanager
def world_of(size: int, rank: int = 0) -> Iterator[None]:
    """Be one of ``size`` processes of which no other is there: nothing is ever sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    excepthook = sys.excepthook  # which torch wraps once more for each process group
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        sys.excepthook = excepthook


def meshes() -> dict[str, Any]:
    """Return meshes of all processes: of one dimension, and of two where there are four.

    A process alone has none.
    """
    count = dist.get_world_size()
    if count == 1:
        return {}
    found = {"line": dist.init_device_mesh("cpu", (count,), mesh_dim_names=("dp",))}
    if count == 4:
        names = ("dp", "tp")
        found["square"] = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=names)
    return found


def placings(ndim: int) -> list[Placed]:
    """Return every kind of placement that a tensor with some dimensions may have here."""
    shards = [Shard(d) for d in range(ndim)]
    found = [PLAIN, ("line", (Replicate(),)), *(("line", (shard,)) for shard in shards)]
    if dist.get_world_size() == 4:
        both = [Replicate(), *shards]
        found += [("square", (one, other)) for one in both for other in both]
    return found


def in_turns(tensors: list[Any], number: int, every: bool = False) -> list[Any]:
    """Return a share of a case's tensors, a smaller one in more processes; cases take turns."""
    share = {2: 1, 3: 1}.get(dist.get_world_size(), 4) if every else 0
    share = share or {2: 2, 3: 3}.get(dist.get_world_size(), 6)
    return tensors[number % share :: share]


def placed(whole: torch.Tensor, place: Placed, known: dict[str, Any]) -> torch.Tensor:
    """Return a whole tensor, which every process has, in its place."""
    mesh, placements = place
    if not mesh:
        return whole.clone()
    local = part(whole, known[mesh], placements).clone(memory_format=torch.contiguous_format)
    options = {"run_check": False, "shape": whole.shape, "stride": whole.stride()}
    return DTensor.from_local(local, known[mesh], placements, **options)


def meta_parts(
    shapes: Iterable[Sequence[int]], mesh: Any, placements: tuple, dtype: torch.dtype
) -> list[torch.nn.Parameter]:
    """Return parameters of which this process holds its part, without memory."""
    boxes = [(tuple(shape), shard_at(mesh, placements, shape).shape) for shape in shapes]
    parts = [(shape, torch.empty(box, dtype=dtype, device="meta")) for shape, box in boxes]
    return [torch.nn.Parameter(wrapped(local, mesh, placements, shape)) for shape, local in parts]


def part(whole: torch.Tensor, mesh: Any, placements: tuple) -> torch.Tensor:
    """Return this process's part of a whole tensor: chunks of chunks, FSDP2's strided ones last."""
    strided = [dim for dim, one in enumerate(placements) if hasattr(one, "split_factor")]
    for dim in [d for d in range(len(placements)) if d not in strided] + strided:
        if placements[dim].is_replicate():
            continue
        axis, mine = placements[dim].dim, mesh.get_local_rank(dim)
        parts = whole.chunk(mesh.size(dim), axis)
        whole = parts[mine] if mine < len(parts) else whole.narrow(axis, 0, 0)
    return whole


def here(tensor: Any, whole: Any) -> tuple[Any, Any]:
    """Return what is here of a tensor, and the same of another that is whole."""
    if not isinstance(tensor, DTensor):
        return tensor, whole
    assert tensor.shape == whole.shape and tensor.dtype is whole.dtype
    return tensor.to_local(), part(whole, tensor.device_mesh, tensor.placements)


def whole_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole of a tensor, put together from all processes."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def random(shape: Sequence[int], seed: int, dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
    """Return normal numbers, the same in every process."""
    source = torch.Generator().manual_seed(seed * 7919 + math.prod(shape))
    return (scale * torch.randn(tuple(shape), generator=source)).to(dtype)


class Twins:
    """An optimizer of spread parameters and one of the same parameters whole.

    Args:
        make: makes an optimizer of parameters.
        tensors: (shape, dtype, place) of each parameter.
        known: the meshes by name.
    """

    def __init__(
        self,
        make: Callable[[Iterable[torch.Tensor]], torch.optim.Optimizer],
        tensors: Sequence[tuple[Sequence[int], torch.dtype, Placed]],
        known: dict[str, Any],
    ) -> None:
        self.tensors, self.known = list(tensors), known
        values = [random(shape, i, dtype) for i, (shape, dtype, _) in enumerate(self.tensors)]
        self.whole = [torch.nn.Parameter(value.clone()) for value in values]
        self.spread = [
            torch.nn.Parameter(placed(value, place, known))
            for value, (_, _, place) in zip(values, self.tensors, strict=True)
        ]
        self.wholes, self.parts = make(self.whole), make(self.spread)

    def set_gradients(self, step: int, scale: float = 1.0, missing: Iterable[int] = ()) -> None:
        """Set the gradients of a step, of all parameters but those whose numbers are missing."""
        missing = set(missing)
        for i, (shape, dtype, place) in enumerate(self.tensors):
            grad = None if i in missing else random(shape, 1000 * step + i, dtype, scale)
            self.whole[i].grad = grad
            self.spread[i].grad = None if grad is None else placed(grad, place, self.known)

    def step(self, count: int = 1, first: int = 1, **options: Any) -> None:
        """Make steps of both."""
        for step in range(first, first + count):
            self.set_gradients(step, **options)
            self.wholes.step()
            self.parts.step()

    def differences(self) -> list[str]:
        """Return where parameters or state differ in a bit, or in where they are."""
        found = []
        for i, (whole, spread) in enumerate(zip(self.whole, self.spread, strict=True)):
            pairs = {"parameter": (whole.detach(), spread.detach())}
            state, other = self.wholes.state[whole], self.parts.state[spread]
            if state.keys() != other.keys():
                found.append(f"{self.tensors[i]}: {sorted(state)} and {sorted(other)}")
                continue
            pairs.update({key: (state[key], other[key]) for key in state})
            for key, (one, two) in pairs.items():
                two, one = here(two, one)
                if bits(one) != bits(two):
                    found.append(f"{self.tensors[i]}: {key}")
        return found


def bits(value: Any) -> Any:
    """Return what tells two values apart to the bit."""
    if not isinstance(value, torch.Tensor):
        return value
    flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
    return value.dtype, tuple(value.shape), bytes(flat.tolist())
