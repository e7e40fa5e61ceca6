"""Sums the gradients of micro-batches in float32, whatever dtype they arrive in."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from fused_optim import errors
from fused_optim.distributed import geometry
from fused_optim.optimizers import hooks
from fused_optim.optimizers.base import FusedOptimizer
from fused_optim.plan import upload
from fused_optim.precision import math_dtype


class Float32Gradients:
    """Float32 sums of an optimizer's gradients, which its next step reads instead of ``p.grad``.

    A bfloat16 gradient that is added to 256 others loses all that is less than their last bit. Here
    each backward pass adds its gradients to float32 buffers as they arrive, and sets ``p.grad`` to
    None. ``optimizer.step()`` reads the sums as ``p.main_grad``, divides by the number of
    micro-batches within the update (no pass over the gradients), and begins a new window. A window
    may have any number of micro-batches, so the last one of an epoch may be shorter. Clipping by
    ``max_grad_norm`` sees the mean.

    Memory: 4 bytes per parameter for the buffers. Of the gradients one exists at a time, so that
    the 2 bytes per parameter of bfloat16 gradients are saved.

    Args:
        optimizer: an optimizer of this package. Its trainable parameters get hooks; those that
            begin to train later need a new object.
        mean: divide by the number of micro-batches of a window. With False nothing is divided, for
            losses that were divided already, as by accelerate and the transformers Trainer.
        average_over: a process group, or a DistributedDataParallel whose group is taken: a step
            averages the sums over its ranks, in float32. Every micro-batch then runs in
            ``no_sync()``, on as many of them per window on each rank. A parameter without gradient
            counts as one with zeros. None leaves the sums to each process.

    Attributes:
        micro_batches: backward passes since the last step.

    Raises:
        TypeError: the optimizer is none of this package's.
        ValueError: a parameter is float16, which needs a GradScaler, or has a gradient already; or
            the optimizer's gradients go to `step_in_backward` or to another such object; or there
            is a DTensor and ``average_over``.

    Example:
        >>> import torch
        >>> from fused_optim import AdamW, Float32Gradients
        >>> model = torch.nn.Linear(4, 2).bfloat16()
        >>> optimizer = AdamW(model.parameters())
        >>> gradients = Float32Gradients(optimizer)
        >>> for batch in torch.ones(3, 1, 4, dtype=torch.bfloat16):
        ...     model(batch).sum().backward()
        >>> gradients.micro_batches, model.weight.main_grad.dtype
        (3, torch.float32)
        >>> optimizer.step()
    """

    def __init__(
        self,
        optimizer: FusedOptimizer,
        *,
        mean: bool = True,
        average_over: torch.distributed.ProcessGroup | DistributedDataParallel | None = None,
    ) -> None:
        hooks.check_optimizer(optimizer, "Float32Gradients")
        if average_over is not None:
            _check_whole(optimizer)
        self.micro_batches = 0
        self._optimizer = optimizer
        self._mean = mean
        self._replica = average_over if isinstance(average_over, DistributedDataParallel) else None
        self._group = average_over if self._replica is None else self._replica.process_group
        self._given: float | torch.Tensor | None = None
        self._pass = -1
        self._reduced = False  # whether the sums are those of all processes
        self._buffers: dict[torch.Tensor, torch.Tensor] = {}
        for group in optimizer.param_groups:
            for param in filter(hooks.takes_hooks, group["params"]):
                self._buffers[param] = torch.zeros_like(param, dtype=math_dtype(param.dtype))
        self._handles = [
            param.register_post_accumulate_grad_hook(self._arrived) for param in self._buffers
        ]
        self._handles += [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        optimizer._gradients = self

    def divide_by(self, divisor: float | torch.Tensor) -> None:
        """Divide the sums by this number in the next step, instead of by the micro-batches.

        Args:
            divisor: for example the number of tokens in the window, over all processes divided by
                the number of processes: a number, or a tensor of one element, which is not read on
                the host.

        Raises:
            ValueError: it is not a positive number.
        """
        if isinstance(divisor, torch.Tensor):
            if divisor.numel() != 1:
                raise ValueError(
                    f"Invalid divisor: a tensor of shape {tuple(divisor.shape)} - should be a "
                    "positive number or a tensor of one element"
                )
        elif (
            isinstance(divisor, bool)
            or not isinstance(divisor, numbers.Real)
            or not 0 < divisor < math.inf
        ):
            raise ValueError(f"Invalid divisor: {divisor!r} - should be a positive number")
        self._given = divisor

    def reset(self) -> None:
        """Drop the sums of this window, as ``zero_grad()`` drops gradients."""
        for param in self._buffers:
            param.main_grad = None
        self.micro_batches, self._given, self._reduced = 0, None, False

    def remove(self) -> None:
        """Leave gradients alone from now on, and free the buffers."""
        self.reset()
        for handle in self._handles:
            handle.remove()
        self._buffers.clear()
        self._optimizer._gradients = None

    def divisor(self, device: torch.device) -> torch.Tensor | None:
        """Return the divisor of this step, ``[]`` float32 on the device; None for 1."""
        divisor = self._given
        if divisor is None:
            divisor = max(1, self.micro_batches) if self._mean else 1
        if isinstance(divisor, torch.Tensor):
            return divisor.detach().reshape(()).to(device, torch.float32)
        if divisor == 1:
            return None
        if upload.capturing():
            raise RuntimeError(
                "Float32Gradients can't count micro-batches in a captured step; call divide_by() "
                "with a tensor on the device, or construct it with mean=False"
            )
        return torch.tensor(float(divisor), dtype=torch.float32, device=device)

    @torch.no_grad()
    def _arrived(self, param: torch.Tensor) -> None:
        """Add a gradient to its buffer and free it."""
        if self._replica is not None and self._replica.require_backward_grad_sync:
            raise RuntimeError(
                "Float32Gradients averages the sums of a window in the step, so no backward pass "
                "may average gradients: run every micro-batch in model.no_sync()"
            )
        if self._reduced:
            raise RuntimeError(
                "Float32Gradients: a gradient arrived after a step had averaged the sums over "
                "processes and failed; call reset(), and compute the whole window again"
            )
        number = torch._C._current_graph_task_id()
        if number != self._pass or number < 0:
            self._pass = number
            self.micro_batches += not hooks.is_nested()
        buffer, grad = self._buffers[param], param.grad
        if getattr(param, "main_grad", None) is None:
            buffer.copy_(grad)
            param.main_grad = buffer
        else:
            buffer.add_(grad)
        param.grad = None

    def _before_step(self, optimizer: FusedOptimizer, args: Any, kwargs: Any) -> None:
        for number, group in enumerate(optimizer.param_groups):
            for index, param in enumerate(group["params"]):
                if param.grad is not None:
                    raise RuntimeError(
                        f"Float32Gradients: {errors.place(group, number, index)} has a p.grad that "
                        "was not summed: it began to train later, p.grad was set by hand, or a "
                        "DistributedDataParallel that is not in average_over made it. remove() "
                        "this object, and construct another"
                    )
        if self._group is not None and not self._reduced:
            self._average()

    @torch.no_grad()
    def _average(self) -> None:
        """Average the sums over the processes, in one all-reduce for each device and dtype."""
        sums = list(self._buffers.items())
        for param, buffer in sums:
            if getattr(param, "main_grad", None) is None:  # other ranks may have one
                buffer.zero_()
                param.main_grad = buffer
        for key in dict.fromkeys((b.device, b.dtype) for _, b in sums):
            mine = [b for _, b in sums if (b.device, b.dtype) == key]
            flat = torch._utils._flatten_dense_tensors(mine)
            torch.distributed.all_reduce(flat, group=self._group)
            flat.div_(torch.distributed.get_world_size(self._group))
            whole = torch._utils._unflatten_dense_tensors(flat, mine)
            torch._foreach_copy_(mine, list(whole))
        self._reduced = True

    def _after_step(self, optimizer: FusedOptimizer, args: Any, kwargs: Any) -> None:
        self.reset()


def _check_whole(optimizer: FusedOptimizer) -> None:
    """Refuse to average gradients of DTensors, which are means over the processes already."""
    for number, group in enumerate(optimizer.param_groups):
        for index, param in enumerate(group["params"]):
            if geometry.is_dtensor(param):
                raise ValueError(
                    f"Float32Gradients: {errors.place(group, number, index)} is a DTensor, whose "
                    "gradients FSDP2 averages over the processes as they arrive; leave out "
                    "average_over"
                )
