"""Steps parameters during the backward pass, so that no more than a bucket of gradients exists.

note: [parts] A step is made in parts, each of the parameters whose gradients arrived together. No
other parameter has a gradient then, so the optimizer's own step updates those of the part alone,
with their numbers in the whole list. What a step remembers of its tensors is kept for each part.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from fused_optim.optimizers import hooks
from fused_optim.optimizers.base import FusedOptimizer
from fused_optim.plan import spread

_MOST_PARTS = 4096  # that are remembered, as the order of gradients may change with every batch


def step_in_backward(
    model: torch.nn.Module, optimizer: FusedOptimizer, *, bucket_bytes: int = 32 << 20
) -> StepInBackward:
    """Have ``backward`` update parameters as their gradients arrive, and free the gradients.

    Gradients of at least ``bucket_bytes`` together are one bucket. A full bucket is updated and its
    gradients become None, before the next ones are computed; the rest is updated at the end of
    ``backward``. Every parameter is updated once in each backward pass, with the same bits as by
    ``optimizer.step()`` afterwards. That call may stay in a loop, where it finds no gradients; so
    may ``zero_grad()`` and schedulers, which act on the next backward pass.

    Memory: at most ``bucket_bytes`` and one gradient, instead of all gradients (2 bytes per
    bfloat16 parameter).

    Args:
        model: the model whose parameters the optimizer updates.
        optimizer: an optimizer of this package.
        bucket_bytes: bytes of gradients that are updated together. With 0 each parameter is updated
            by itself, which takes a launch and some 0.1 ms of Python for each.

    Returns:
        A handle. Its ``remove()`` makes ``backward`` leave gradients alone again.

    Raises:
        TypeError: ``model`` is no module, or ``optimizer`` is none of this package's.
        ValueError: ``bucket_bytes`` is negative; no parameter of the optimizer is the model's; a
            parameter is float16, which needs a GradScaler; one has a gradient; the optimizer clips
            by the norm of all gradients; or the model is a DistributedDataParallel, which sums
            gradients over processes after they arrive here.

    While it is in use, a forward pass raises RuntimeError under float16 autocast, whose losses are
    scaled, and inside a DistributedDataParallel. A backward pass within a backward pass, as that of
    a reentrant checkpoint, raises RuntimeError, because its gradients may be a part of the whole.
    Each backward pass makes a step, so gradients can't be accumulated.

    Example:
        >>> import torch
        >>> from fused_optim import AdamW, step_in_backward
        >>> model = torch.nn.Linear(4, 2)
        >>> handle = step_in_backward(model, AdamW(model.parameters()))
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> model.weight.grad is None
        True
    """
    _check(model, optimizer, bucket_bytes)
    return StepInBackward(model, optimizer, bucket_bytes)


class StepInBackward:
    """The hooks of `step_in_backward`, and the gradients that wait for their bucket to be full."""

    def __init__(
        self, model: torch.nn.Module, optimizer: FusedOptimizer, bucket_bytes: int
    ) -> None:
        self._optimizer = optimizer
        self._bucket_bytes = bucket_bytes
        self._lock = threading.RLock()  # one thread of autograd's for each device
        self._pass = -1  # autograd's number of the backward pass
        self._waiting: list[torch.Tensor] = []
        self._bytes = 0
        self._remembered: dict[tuple[int, ...], tuple[Any, Any]] = {}
        self._handles = [
            param.register_post_accumulate_grad_hook(self._arrived)
            for group in optimizer.param_groups
            for param in filter(hooks.takes_hooks, group["params"])
        ]
        self._handles.append(model.register_forward_pre_hook(_check_forward))
        optimizer._gradients = self

    def remove(self) -> None:
        """Make ``backward`` leave gradients alone again."""
        for handle in self._handles:
            handle.remove()
        self._optimizer._gradients = None

    def divisor(self, device: torch.device) -> None:
        """Return None: gradients are updated with as they arrive."""

    def _arrived(self, param: torch.Tensor) -> None:
        """Note a gradient, and make a step if there are enough of them."""
        with self._lock:
            number = torch._C._current_graph_task_id()
            if number != self._pass or number < 0:
                self._begin_pass(number)
            if param.grad is None:  # a step on another thread has taken it
                return
            self._waiting.append(param)
            self._bytes += param.grad.nbytes
            if self._bytes >= self._bucket_bytes or number < 0:
                self._step()

    def _begin_pass(self, number: int) -> None:
        """Forget the last pass, which may have ended with an error."""
        if hooks.is_nested():
            raise RuntimeError(
                "step_in_backward: a gradient came from a backward pass within another one, as a "
                "reentrant checkpoint makes it, and may be a part of the whole gradient. Use "
                "torch.utils.checkpoint with use_reentrant=False, or remove() the handle"
            )
        self._pass, self._waiting, self._bytes = number, [], 0
        self._optimizer._begun = False
        if number >= 0:
            torch.autograd.Variable._execution_engine.queue_callback(self._end_pass)

    def _end_pass(self) -> None:
        with self._lock:
            if self._waiting:
                self._step()
            self._optimizer._begun = False

    @torch.no_grad()
    def _step(self) -> None:
        """Update the waiting parameters and free their gradients. See [parts]."""
        optimizer, waiting = self._optimizer, self._waiting
        self._waiting, self._bytes = [], 0
        part = tuple(map(id, waiting))
        if len(self._remembered) > _MOST_PARTS:
            self._remembered.clear()
        whole = optimizer._steady, optimizer._plans
        optimizer._steady, optimizer._plans = self._remembered.pop(part, (None, {}))
        try:
            optimizer._step_once()
            self._remembered[part] = optimizer._steady, optimizer._plans
        finally:
            optimizer._steady, optimizer._plans = whole
        optimizer._begun = True
        for param in waiting:
            param.grad = None


def _check(model: torch.nn.Module, optimizer: FusedOptimizer, bucket_bytes: int) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model should be a torch.nn.Module, but it is a {type(model).__name__}")
    hooks.check_optimizer(optimizer, "step_in_backward")
    name = type(optimizer).__name__
    if isinstance(bucket_bytes, bool) or not isinstance(bucket_bytes, int) or bucket_bytes < 0:
        raise ValueError(f"Invalid bucket_bytes: {bucket_bytes!r} - should be an integer >= 0")
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError(
            "step_in_backward can't be combined with DistributedDataParallel, which sums gradients "
            "over processes after they arrive; call optimizer.step() after the backward pass, or "
            "shard the model with torch.distributed.fsdp.fully_shard"
        )
    if optimizer._clips_together():
        raise ValueError(
            f"step_in_backward can't clip by the norm of all gradients, as {name} is to: no two of "
            "them exist together. Construct it without max_grad_norm and global_clipnorm"
        )
    _check_alone(optimizer)
    held = set(map(id, model.parameters()))
    if not any(id(param) in held for group in optimizer.param_groups for param in group["params"]):
        raise ValueError(f"{name} updates no parameter of this model; pass the model it is for")


def _check_alone(optimizer: FusedOptimizer) -> None:
    """Refuse a step for which processes exchange sums: their buckets would fill at other times."""
    if not spread.spread_of(optimizer):
        return
    name = type(optimizer).__name__
    if optimizer.skip_nonfinite or optimizer._clips() or optimizer._exchanges():
        raise ValueError(
            f"step_in_backward can't be combined with parameters that are split over processes "
            f"where {name} adds something up over them: statistics, norms of gradients, or what "
            "skip_nonfinite asks; call optimizer.step() after the backward pass"
        )


def _check_forward(module: torch.nn.Module, args: Any) -> None:
    """Refuse a forward pass whose backward pass would bring gradients that are not final."""
    device = next((param.device.type for param in module.parameters()), "cpu")
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16:
        raise RuntimeError(
            "step_in_backward can't be combined with float16 autocast, as a GradScaler scales its "
            "gradients; use torch.bfloat16, or remove() the handle"
        )
    if DistributedDataParallel._active_ddp_module is not None:
        raise RuntimeError(
            "step_in_backward can't be combined with DistributedDataParallel, which sums gradients "
            "over processes after they arrive; remove() the handle"
        )
