"""One of two FSDP2 processes whose gradients go elsewhere: to float32 sums, or to steps at once."""

from __future__ import annotations

from typing import Any

import torch
from fsdp_shards import WIDTH, before, train
from processes import finish, join
from shards import bits

from fused_optim import Adafactor, AdamW, Float32Gradients, step_in_backward

MICRO_BATCHES = 4  # whose mean is exact


def windows(make: Any, mesh: Any, rank: int) -> dict[str, Any]:
    """Return the micro-batches that were counted, and what is not the same to the bit."""
    model, optimizer = before(make, mesh=mesh, dtype=torch.bfloat16)
    other, plain = before(make, mesh=mesh, dtype=torch.bfloat16)
    gradients = Float32Gradients(optimizer)
    counted = []
    for window in range(2):
        sums: dict[Any, torch.Tensor] = {}
        for number in range(MICRO_BATCHES):
            seed = 100 * rank + 10 * window + number
            x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(seed)).bfloat16()
            (model(x).float() - 1.0).square().mean().backward()
            train(other, seed)
            for p in filter(lambda p: p.grad is not None, other.parameters()):
                sums[p] = p.grad.float() + sums.get(p, 0.0)
        counted.append(gradients.micro_batches)
        for p, total in sums.items():
            p.grad, p.main_grad = None, total / MICRO_BATCHES
        optimizer.step()
        plain.step()
        for p in sums:
            p.main_grad = None
    return {"counted": counted, "differences": differing(model, other)}


def differing(model: torch.nn.Module, other: torch.nn.Module) -> list[str]:
    """Return the parameters that are not the same in both models, to the bit."""
    pairs = zip(model.named_parameters(), other.parameters(), strict=True)
    return [name for (name, p), q in pairs if bits(p.to_local()) != bits(q.to_local())]


def at_once(mesh: Any, rank: int, bucket_bytes: int) -> dict[str, Any]:
    """Return what three steps within the backward pass freed, and how they differ from others."""
    model, optimizer = before(AdamW, mesh=mesh, dtype=torch.bfloat16)
    other, plain = before(AdamW, mesh=mesh, dtype=torch.bfloat16)
    start = [p.to_local().clone() for p in model.parameters() if p.requires_grad]
    step_in_backward(model, optimizer, bucket_bytes=bucket_bytes)
    freed = []
    for step in range(3):
        train(model, 10 * rank + step)
        freed.append(all(p.grad is None for p in model.parameters()))
        train(other, 10 * rank + step)
        plain.step()
        plain.zero_grad()
    trained = [p.to_local() for p in model.parameters() if p.requires_grad]
    moved = all(not torch.equal(p, q) for p, q in zip(trained, start, strict=True) if p.numel())
    return {"freed": freed, "moved": moved, "differences": differing(model, other)}


def main() -> None:
    rank, _ = join()
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    found = {make.__name__: windows(make, mesh, rank) for make in (AdamW, Adafactor)}
    found["at once"] = [at_once(mesh, rank, size) for size in (0, 64, 2**20)]
    model, optimizer = before(AdamW, mesh=mesh)
    try:
        Float32Gradients(optimizer, average_over=mesh.get_group())
        found["refused"] = "nothing was raised"
    except ValueError as error:
        found["refused"] = str(error)
    found["untouched"] = optimizer._gradients is None
    finish(found)


if __name__ == "__main__":
    main()
