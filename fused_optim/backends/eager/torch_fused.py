"""A fast path for AdamW on CPU: torch's own fused operators, where they fit.

They take a whole float32 bucket at once, or else the registers of one block. They are private to
torch, so their schema is checked once before the first use; where it is not the expected one, or
the operands do not fit, the plain path in adamw.py runs instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from operator import attrgetter

import torch

from . import lanes

_SCHEMA = (
    ("self", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps")
    + ("lr", "beta1", "beta2", "weight_decay", "eps", "amsgrad", "maximize")
    + ("grad_scale", "found_inf")
)

# The operators correct the bias by 1 - beta^step, which is 1 at this step count. The row's scalars
# hold the correction already.
_UNCORRECTED_STEP = 1e30

# The operators do the last elements of a tensor, fewer than this, without vector registers. There
# their maximum of a number and NaN is the number.
_TAIL = 64

_dtype = attrgetter("dtype")


@functools.cache
def available() -> bool:
    """Return whether this torch has the fused CPU operators in the form used here."""
    try:
        schemas = (torch.ops.aten._fused_adam_.default._schema,)
        schemas += (torch.ops.aten._fused_adamw_.default._schema,)
        names = {tuple(argument.name for argument in schema.arguments) for schema in schemas}
        if names != {_SCHEMA}:
            return False
        p, g, m, v = (torch.zeros(1, dtype=torch.float32, device="cpu") for _ in range(4))
        _run(torch.ops.aten._fused_adamw_.default, [p], [g], [m], [v], [], lr=0.1, eps=1.0)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return p.item() == 0.0


def covers(bucket, launch) -> bool:
    """Return whether the operators can make the bucket's whole step in its stored tensors."""
    return (
        bucket.key.device.type == "cpu"
        and bucket.key.dtype is torch.float32
        and launch.clip is None
        and launch.grad_scale is None
        and all(_row_fits(row) and _gradient_is_plain(row) for row in bucket.rows)
        and _entries_fit(bucket.entries)
        and available()
    )


def run_(bucket) -> None:
    """Run the bucket's step, one operator call per row. `covers` must have said yes."""
    by_row: list[list] = [[] for _ in bucket.rows]
    for entry in bucket.entries:
        by_row[entry.row].append(entry)
    fields = ("param", "grad", "exp_avg", "exp_avg_sq") + ("max_exp_avg_sq",) * bucket.key.amsgrad
    for row, entries in zip(bucket.rows, by_row, strict=True):
        parts = [entry for entry in entries if is_part(entry.shard)]
        entries = [entry for entry in entries if not is_part(entry.shard)] if parts else entries
        if entries:
            registers = [[getattr(entry, field) for entry in entries] for field in fields]
            _step(row, *registers, maximize=row.grad_mul < 0.0)
        for entry in parts:
            registers = [getattr(entry, field) for field in fields]
            alone = singly(entry.shard, 0, entry.param.numel())
            _step_part(row, registers, alone, maximize=row.grad_mul < 0.0)


def is_part(shard) -> bool:
    """Return whether a tensor is a part of a whole, so that its end is not the whole's."""
    return shard is not None and shard.shape != shard.whole


def singly(shard, first: int, count: int) -> int | None:
    """Return how many of the last of a part's elements the operators do singly in the whole.

    Args:
        shard: where the part lies in the whole; for any other tensor the answer is None.
        first: of the elements that are asked about, by its logical index in the part.
        count: how many they are.
    """
    if not is_part(shard) or not available():
        return None
    return lanes.singly(shard, first, count, lanes.cached_width(_one_step)) if count else 0


def update_(p, g, m, v, h, row, alone: int | None) -> bool:
    """Run `adamw.update_` on registers by one operator, where that is possible.

    ``alone`` is what `singly` says of a part of a whole, and None for a tensor that is none.

    Returns:
        Whether the operator ran. If not, nothing was written.
    """
    registers = [t for t in (p, g, m, v, h) if t is not None]
    fits = all(t.dtype is torch.float32 and t.is_contiguous() for t in registers)
    if not (fits and p.device.type == "cpu" and _row_fits(row) and available()):
        return False
    if alone is None:
        _step(row, *([register] for register in registers), maximize=False)
    else:
        _step_part(row, registers, alone, maximize=False)
    return True


def _step_part(row, registers: list, alone: int, *, maximize: bool) -> None:
    """Step one part of a whole: fused_optim/backends/eager/lanes.py, note: [lanes]."""
    pieces, padded = lanes.pieces(registers, alone, lanes.cached_width(_one_step))
    if pieces:
        _step(row, *map(list, zip(*pieces, strict=True)), maximize=maximize)
    if padded:
        del padded[1], registers[1]  # the gradient's
        lanes.take_back_(registers, padded, alone)


def _one_step(registers: list) -> None:
    """Run an operator on four float32 tensors, to see what it does at their ends."""
    operator = torch.ops.aten._fused_adamw_.default
    _run(operator, *([one] for one in registers), [], lr=0.1, eps=1e-3, weight_decay=0.1)


def _step(
    row,
    params: list,
    grads: list,
    exp_avgs: list,
    exp_avg_sqs: list,
    maxima: Sequence = (),
    *,
    maximize: bool,
) -> None:
    maxima = list(maxima)
    # step_size*m / (sqrt(v)*denom_scale + eps), divided through by denom_scale.
    lr = row.step_size / row.denom_scale
    l2 = row.l2 != 0.0
    decay = (1.0 - row.decay_before) / lr
    _run(
        torch.ops.aten._fused_adam_.default if l2 else torch.ops.aten._fused_adamw_.default,
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        maxima,
        lr=lr,
        beta1=1.0 - row.omb1,
        beta2=row.b2,
        weight_decay=row.l2 if l2 else decay,
        eps=row.eps / row.denom_scale,
        maximize=maximize,
    )
    if maxima:
        tails = ([t.view(-1)[-_TAIL:] for t in tensors] for tensors in (maxima, exp_avg_sqs))
        torch._foreach_maximum_(*tails)
    if row.decay_after != 1.0:
        torch._foreach_mul_(params, row.decay_after)
    for tensors in (params, exp_avgs, exp_avg_sqs, maxima):
        _count_write(tensors)


def _run(
    operator,
    params: list,
    grads: list,
    exp_avgs: list,
    exp_avg_sqs: list,
    max_exp_avg_sqs: list,
    *,
    lr: float,
    eps: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    operator(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        max_exp_avg_sqs,
        [torch.full((), _UNCORRECTED_STEP, dtype=torch.float32, device="cpu")] * len(params),
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=bool(max_exp_avg_sqs),
        maximize=maximize,
    )


def _count_write(tensors: list) -> None:
    """Tell autograd that ``tensors`` were written to, which the operators do not."""
    try:
        torch.autograd.graph.increment_version(tensors)
    except (RuntimeError, TypeError):  # older torch takes one at a time
        for tensor in tensors:
            torch.autograd.graph.increment_version(tensor)


def _row_fits(row) -> bool:
    # The operators have either L2 or decoupled decay, and multiply the latter by lr. With an lr
    # of 0 they would turn a parameter of -0 into +0.
    return (row.decay_before == 1.0 or row.l2 == 0.0) and row.step_size != 0.0


def _gradient_is_plain(row) -> bool:
    return row.clip_value == math.inf and abs(row.grad_mul) == 1.0


def _entries_fit(entries: list) -> bool:
    """Return whether all tensors are contiguous float32, by calls that loop in C."""
    for field in ("param", "grad", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        tensors = [t for t in map(attrgetter(field), entries) if t is not None]
        if not set(map(_dtype, tensors)) <= {torch.float32}:
            return False
        if not all(map(torch.Tensor.is_contiguous, tensors)):
            return False
    return True
