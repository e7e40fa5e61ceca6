"""Which part of the whole a DTensor holds: by torch's own layout of numbered elements, any mesh."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from processes import needs_gloo
from shards import world_of

import fused_optim
from fused_optim.distributed import geometry, placement

pytestmark = needs_gloo

MESHES = ((4,), (2, 2), (2, 3), (2, 2, 2))
SHAPES = ((8, 12), (7, 5), (3, 2, 9), (1, 4), (0, 3), (13,))


@pytest.fixture
def world() -> Iterator[Any]:
    """Start a process group of any size and rank in which nothing is ever sent."""
    with contextlib.ExitStack() as started:
        yield lambda rank, size: started.enter_context(world_of(size, rank))


def placings(mesh: tuple[int, ...], ndim: int) -> Iterator[tuple]:
    from torch.distributed.tensor import Replicate, Shard

    kinds = [Replicate(), *(Shard(d) for d in range(ndim))]
    yield from itertools.product(kinds, repeat=len(mesh))


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_boxes_hold_what_torch_gives_each_process(shape: tuple[int, ...], world: Any) -> None:
    from torch.distributed.tensor import distribute_tensor

    size = torch.Size(shape).numel()
    for rank in range(size):
        world(rank, size)
        mesh = torch.distributed.init_device_mesh("cpu", shape)
        for tensor in SHAPES[:: 1 if len(shape) < 3 else 2]:
            numbers = torch.arange(torch.Size(tensor).numel()).view(tensor)
            for placements in placings(shape, len(tensor)):
                held = distribute_tensor(numbers, mesh, placements, src_data_rank=None)
                shard = geometry.shard_of(held)
                local = held.to_local()
                assert torch.equal(shard.box_of(numbers), local)
                count = local.numel()
                elements = shard.elements(0, count, torch.device("cpu"))
                assert torch.equal(elements, local.reshape(-1))
                assert torch.equal(
                    shard.elements(count // 2, count - count // 2, torch.device("cpu")),
                    local.reshape(-1)[count // 2 :],
                )
                consecutive = torch.arange(count) + shard.first_element
                assert shard.in_order == torch.equal(elements, consecutive)
                assert shard.numel == numbers.numel()
        torch.distributed.destroy_process_group()


def test_shards_of_fsdp_on_top_of_tensor_parallelism(world: Any) -> None:
    """A strided shard splits what the later mesh dimensions left."""
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    for rank, rows in itertools.product(range(8), (8, 9, 13, 3)):
        world(rank, 8)
        numbers = torch.arange(rows * 2).view(rows, 2)
        for shape, placements in {
            (4, 2): (_StridedShard(0, split_factor=2), Shard(0)),
            (2, 2, 2): (Replicate(), _StridedShard(0, split_factor=2), Shard(0)),
        }.items():
            mesh = torch.distributed.init_device_mesh("cpu", shape)
            outer = mesh.get_local_rank(len(shape) - 1), shape[-1]
            inner = mesh.get_local_rank(len(shape) - 2), shape[-2]
            local = numbers
            for place, count in (outer, inner):
                parts = [*local.chunk(count), *([local[:0]] * count)]
                local = parts[place]
            held = placement.wrapped(local, mesh, placements, numbers.shape)
            assert isinstance(held, DTensor)
            assert torch.equal(geometry.shard_of(held).box_of(numbers), local)
        torch.distributed.destroy_process_group()


def test_what_no_process_can_update_by_itself_is_refused(world: Any) -> None:
    from torch.distributed.tensor import Partial, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    world(0, 4)
    mesh = torch.distributed.init_device_mesh("cpu", (2, 2))
    for placements, message in {
        (Partial(), Shard(0)): "holds a summand of it",
        (_StridedShard(0, split_factor=4), Shard(0)): "a strided shard that is not what 4 earlier",
        (_StridedShard(0, split_factor=2), Shard(1)): "a strided shard that is not what 2 earlier",
    }.items():
        held = placement.wrapped(torch.ones(2, 2), mesh, placements, (8, 4))
        with pytest.raises(ValueError, match=f"is a DTensor with placements .*{message}"):
            geometry.shard_of(held)
    held = placement.wrapped(torch.ones(3, 2), mesh, (Shard(0), Shard(1)), (7, 4))
    with pytest.raises(ValueError, match=r"should hold \(4, 2\) but has \(3, 2\)"):
        geometry.shard_of(held)


def test_statistics_lie_where_their_rows_and_columns_do(world: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    gone, stays = Replicate(), Shard(0)
    strided = _StridedShard(1, split_factor=2)
    for placements, dim, keepdim, expected in (
        ((Shard(2), Shard(0)), 2, False, (gone, stays)),
        ((Shard(2), Shard(0)), 1, False, (Shard(1), stays)),
        ((Shard(2), Shard(0)), 1, True, (Shard(2), stays)),
        ((Shard(-1), Shard(1)), 1, False, (Shard(1), gone)),
        ((strided, Shard(1)), 1, False, (gone, gone)),
        ((strided, Shard(1)), 0, False, (_StridedShard(0, split_factor=2), Shard(0))),
        ((Replicate(), Shard(1)), 2, True, (Replicate(), Shard(1))),
    ):
        assert placement.without_dim(placements, 3, dim, keepdim=keepdim) == expected


def test_a_step_in_the_backward_pass_refuses_sums_over_processes(world: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    world(0, 2)
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    model = torch.nn.Linear(4, 6, bias=False)
    part = distribute_tensor(model.weight.detach(), mesh, [Shard(0)], src_data_rank=None)
    model.weight = torch.nn.Parameter(part)
    for optimizer in (
        fused_optim.Adafactor(model.parameters()),
        fused_optim.AdamW(model.parameters(), skip_nonfinite=True),
        fused_optim.AdamWeightDecay(model.parameters(), clipnorm=1.0),
    ):
        with pytest.raises(ValueError, match="split over processes where .* adds something up"):
            fused_optim.step_in_backward(model, optimizer)
    fused_optim.step_in_backward(model, fused_optim.AdamW(model.parameters())).remove()
