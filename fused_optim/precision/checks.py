"""Checks that tensors can be updated, and by their gradients: kinds, dtypes, shapes and memory."""

from __future__ import annotations

from typing import Any

import torch

from fused_optim.precision import modes


def trains(param: torch.Tensor) -> bool:
    """Return whether a parameter can be updated now; frozen and lazy ones can't."""
    return param.requires_grad and not torch.nn.parameter.is_lazy(param)


def check_param(param: torch.Tensor, where: str) -> None:
    """Refuse parameters that can't be updated: complex, integer, sparse, overlapping, sharded."""
    if is_sharded(param):
        raise NotImplementedError(
            f"{where} is a DTensor; sharded parameters (FSDP2, tensor parallel) are not supported "
            "by this version, replicated ones (DistributedDataParallel) are"
        )
    if param.is_complex():
        raise ValueError(
            f"{where} is {param.dtype}; complex parameters are not supported, optimize "
            "torch.view_as_real(p) instead"
        )
    if param.dtype not in modes.SUPPORTED_DTYPES:
        raise ValueError(
            f"{where} is {param.dtype}; parameters must be float32, float64, float16 or bfloat16"
        )
    if param.layout is not torch.strided:
        raise ValueError(f"{where} has layout {param.layout}; only dense parameters are supported")
    if param.is_neg():
        raise ValueError(f"{where} is a view that shows its memory negated; pass p.resolve_neg()")
    fault = memory_fault(param)
    if fault is not None:
        raise ValueError(f"{where} {fault}; pass p.contiguous() or the tensor it was made from")


def is_sharded(tensor: Any) -> bool:
    """Return whether a tensor is a DTensor, whose memory here may be a part of its shape."""
    return hasattr(tensor, "device_mesh")


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


def check_gradient(grad: torch.Tensor, param: torch.Tensor, optimizer: str, where: str) -> None:
    """Refuse gradients that no backend can use."""
    if not isinstance(grad, torch.Tensor):
        raise RuntimeError(f"{optimizer}: the main_grad of {where} is {grad!r}, not a tensor")
    if grad.layout is not torch.strided:
        raise RuntimeError(
            f"{optimizer} does not support sparse gradients: that of {where} has layout "
            f"{grad.layout}. Use sparse=False in the embedding, or torch.optim.SparseAdam"
        )
    if is_sharded(grad):
        raise RuntimeError(
            f"{optimizer}: the gradient of {where} is a DTensor and the parameter is none; use "
            "grad.to_local(), or shard both"
        )
    if grad.dtype not in modes.SUPPORTED_DTYPES:
        raise RuntimeError(f"{optimizer}: the gradient of {where} is {grad.dtype}, not a float")
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
