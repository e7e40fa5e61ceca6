"""Checks that tensors can be updated, and by their gradients: kinds, dtypes, shapes and memory."""

from __future__ import annotations

import math

import torch

from fused_optim import errors
from fused_optim.distributed import geometry, placement
from fused_optim.precision import modes


def trains(param: torch.Tensor) -> bool:
    """Return whether a parameter can be updated now; frozen and lazy ones can't."""
    return param.requires_grad and not torch.nn.parameter.is_lazy(param)


def check_param(param: torch.Tensor, where: str) -> None:
    """Refuse parameters that can't be updated: complex, integer, sparse, overlapping, Partial."""
    with errors.naming(f"{where} "):
        geometry.shard_of(param)
    param = geometry.local_of(param)
    if param.is_complex():
        raise ValueError(
            f"{where} is {param.dtype}; complex parameters are not supported, optimize "
            "torch.view_as_real(p) instead"
        )
    if param.dtype not in modes.SUPPORTED_DTYPES:
        raise ValueError(
            f"{where} is {param.dtype}; parameters must be float32, float64, float16 or "
            "bfloat16; cast it, or leave it out of the optimizer"
        )
    if param.layout is not torch.strided:
        raise ValueError(
            f"{where} has layout {param.layout}; only dense parameters are supported, pass "
            "p.to_dense()"
        )
    if param.is_neg():
        raise ValueError(f"{where} is a view that shows its memory negated; pass p.resolve_neg()")
    fault = memory_fault(param)
    if fault is not None:
        raise ValueError(f"{where} {fault}; pass p.contiguous() or the tensor it was made from")


def memory_fault(tensor: torch.Tensor) -> str | None:
    """Return the fault of a dense tensor's memory that forbids writing to it, or None."""
    if overlaps(tensor):
        return (
            f"has elements that share memory (strides {tensor.stride()} for shape "
            f"{tuple(tensor.shape)})"
        )
    return memory_missing(tensor)


def memory_missing(tensor: torch.Tensor) -> str | None:
    """Return how far a dense tensor reaches beyond its storage, which somebody shrank, or None."""
    if tensor.numel() == 0:
        return None
    last = sum(st * (size - 1) for st, size in zip(tensor.stride(), tensor.shape, strict=True))
    needed = (tensor.storage_offset() + last + 1) * tensor.element_size()
    there = tensor.untyped_storage().nbytes()
    return None if needed <= there else f"needs {needed} bytes, but its memory has {there}"


def local_gradient(
    grad: torch.Tensor, param: torch.Tensor, optimizer: str, where: str
) -> torch.Tensor:
    """Return this process's part of a gradient, once it was checked.

    A gradient that is spread otherwise than its parameter is redistributed, by a collective.

    Raises:
        RuntimeError: no backend can use it.
    """
    if not isinstance(grad, torch.Tensor):
        raise RuntimeError(
            f"{optimizer}: the main_grad of {where} is {grad!r}, not a tensor; "
            "put a gradient of the parameter's shape there, or delete the attribute"
        )
    if geometry.is_dtensor(grad) is not geometry.is_dtensor(param):
        if geometry.is_dtensor(param):
            raise RuntimeError(
                f"{optimizer}: {where} is a DTensor and its gradient is none; "
                "distribute it as the parameter is, by torch.distributed.tensor.distribute_tensor"
            )
        raise RuntimeError(
            f"{optimizer}: the gradient of {where} is a DTensor and the parameter is none; use "
            "grad.to_local(), or shard both"
        )
    if geometry.is_dtensor(grad):
        if grad.device_mesh != param.device_mesh:
            fault = placement.fault_of_place(grad, param.device_mesh, grad.placements)
            raise RuntimeError(f"{optimizer}: the gradient of {where} {fault}")
        if tuple(grad.placements) != tuple(param.placements):
            grad = grad.redistribute(placements=param.placements)
        grad, param = geometry.arrived(geometry.local_of(grad)), geometry.local_of(param)
    _check_gradient(grad, param, optimizer, where)
    # Kernels see memory alone.
    return grad.clone() if grad._is_zerotensor() else grad.resolve_neg()


def _check_gradient(grad: torch.Tensor, param: torch.Tensor, optimizer: str, where: str) -> None:
    if grad.layout is not torch.strided:
        raise RuntimeError(
            f"{optimizer} does not support sparse gradients: that of {where} has layout "
            f"{grad.layout}. Use sparse=False in the embedding, or torch.optim.SparseAdam"
        )
    if grad.dtype not in modes.SUPPORTED_DTYPES:
        raise RuntimeError(
            f"{optimizer}: the gradient of {where} is {grad.dtype}, not a "
            "float; cast it to the parameter's dtype"
        )
    if grad.shape != param.shape or grad.device != param.device:
        raise RuntimeError(
            f"{optimizer}: the gradient of {where} has shape {tuple(grad.shape)} on {grad.device}, "
            f"the parameter {tuple(param.shape)} on {param.device}; they must agree"
        )
    missing = memory_missing(grad)
    if missing is not None:
        raise RuntimeError(
            f"{optimizer}: the gradient of {where} {missing}; its storage was resized after "
            "backward, which has to run again"
        )


def any_nonfinite(tensors: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return whether any element is infinite or NaN: float32 ``[]``, 1 or 0, on ``device``."""
    alike: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    found = torch.zeros((), dtype=torch.float32, device=device)
    for same in alike.values():
        largest = torch.stack(torch._foreach_norm(same, math.inf))
        found = torch.maximum(found, (~largest.isfinite()).any().to(device, torch.float32))
    return found


def overlaps(tensor: torch.Tensor) -> bool:
    """Return whether two elements may share memory (exact for the strides that views produce)."""
    if tensor.numel() == 0:
        return False
    reach = 0
    dims = sorted((st, size) for st, size in zip(tensor.stride(), tensor.shape, strict=True))
    for stride, size in dims:
        if size > 1:
            if stride <= reach:
                return True
            reach += stride * (size - 1)
    return False
