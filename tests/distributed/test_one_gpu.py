"""DTensors on a GPU, in a process group of one rank over NCCL: the paths of shards, and capture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fused_optim
from fused_optim import torch_compat
from fused_optim.distributed import agreement, reduce
from fused_optim.plan import upload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
MAKES = {
    "AdamW": lambda params: fused_optim.AdamW(params, lr=1e-2, max_grad_norm=1.0),
    "stochastic": lambda params: torch_compat.AdamW(params, lr=1e-2, skip_nonfinite=True),
    "capturable": lambda params: fused_optim.AdamW(params, lr=1e-2, capturable=True),
    "Adafactor": lambda params: fused_optim.Adafactor(params, beta1=0.9, max_grad_norm=1.0),
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    where: Path = tmp_path_factory.mktemp("nccl") / "rendezvous"
    torch.cuda.set_device(0)  # a mesh warns of having to guess it
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl", init_method=f"file://{where}", rank=0, world_size=1
    )
    yield torch.distributed.init_device_mesh("cuda", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("offloads", [False, True], ids=["", "offload"])
@pytest.mark.parametrize("name", MAKES)
def test_fsdp2_is_the_plain_model(name: str, offloads: bool, mesh: Any) -> None:
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    if offloads and name == "capturable":
        pytest.skip("a capturable step is the device's")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Linear(48, 8)).bfloat16().cuda()
    plain = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
    policy = CPUOffloadPolicy() if offloads else OffloadPolicy()
    fully_shard(model, mesh=mesh, offload_policy=policy)
    optimizer, other = MAKES[name](model.parameters()), MAKES[name](plain)
    for _ in range(4):
        model.zero_grad()
        model(torch.randn(4, 64, device="cuda").bfloat16()).float().square().mean().backward()
        for p, q in zip(model.parameters(), plain, strict=True):
            q.grad = p.grad.to_local().to(q.device, copy=True)
        optimizer.step()
        other.step()
    for p, q in zip(model.parameters(), plain, strict=True):
        assert torch.equal(p.to_local().to(q.device), q) or offloads
        torch.testing.assert_close(p.to_local().to(q.device), q)


def test_sums_over_one_rank_are_its_own(mesh: Any) -> None:
    over = reduce.along(mesh, [0])
    assert over[0].device.type == "cuda" and over[0].ranks == (0,)
    sums = reduce.Sums([("a", over, 3), ("b", over, 1)], torch.float32)
    sums["a"].copy_(torch.tensor([1.0, 2.0, 3.0]))
    reduce.together([sums])
    assert sums["a"].tolist() == [1.0, 2.0, 3.0] and sums["b"].item() == 0.0
    lanes = torch.tensor(agreement.lanes_of([1, 5]), device="cuda")
    assert upload.fetched(agreement.agree(lanes))().item()
    lanes[1] += 1.0
    assert not upload.fetched(agreement.agree(lanes))().item()
