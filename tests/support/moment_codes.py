"""Codes of 8 bits that moments might be kept in, and what each does to AdamW's updates.

A code here is a function of both moments that returns what their codes stand for. All but the
package's own are written down as their papers and libraries describe them, in float32 and without
their packing. They round stochastically where they are asked to, else to nearest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from fused_optim.precision import eight_bit

BLOCK = eight_bit.BLOCK
Pair = tuple[torch.Tensor, torch.Tensor]
Code = Callable[[torch.Tensor, torch.Tensor, torch.Generator], Pair]


def _whole(steps: torch.Tensor, source: torch.Generator | None) -> torch.Tensor:
    """Round to a whole number: to nearest, or where there is a source at random."""
    return (steps + (0.5 if source is None else torch.rand(steps.shape, generator=source))).floor()


def _in_table(x: torch.Tensor, table: torch.Tensor, source: torch.Generator | None) -> torch.Tensor:
    above = torch.bucketize(x, table).clamp(1, len(table) - 1)
    low, high = table[above - 1], table[above]
    share = ((x - low) / (high - low)).clamp(0.0, 1.0)
    border = 0.5 if source is None else torch.rand(x.shape, generator=source)
    return torch.where(share > border, high, low)


def _tree(signed: bool) -> torch.Tensor:
    """Return dynamic tree's values: a decade for each leading zero, and linear within a decade."""
    found = [0.0, 1.0]
    for decade in range(7):
        borders = torch.linspace(0.1, 1.0, 2 ** (decade + (0 if signed else 1)) + 1)
        values = (borders[:-1] + borders[1:]) / 2 * 10.0 ** (decade - 6)
        found += [*values.tolist(), *([-v for v in values.tolist()] if signed else [])]
    return torch.tensor(sorted(found))


def separately(one: Callable[..., torch.Tensor], *, stochastic: bool) -> Code:
    """Return the code of each moment by itself, a block at a time: ``one(x, signed, source)``."""

    def coded(m: torch.Tensor, v: torch.Tensor, source: torch.Generator) -> Pair:
        given = source if stochastic else None
        return tuple(
            one(x.view(-1, BLOCK), signed, given).view(x.shape)
            for x, signed in ((m, True), (v, False))
        )

    return coded


def linear(x: torch.Tensor, signed: bool, source: torch.Generator | None) -> torch.Tensor:
    codes, largest = 127 if signed else 255, x.abs().amax(1, keepdim=True).clamp(min=1e-38)
    return _whole(x / largest * codes, source).clamp(-codes, codes) / codes * largest


def dynamic(x: torch.Tensor, signed: bool, source: torch.Generator | None) -> torch.Tensor:
    largest = x.abs().amax(1, keepdim=True).clamp(min=1e-38)
    return _in_table(x / largest, _tree(signed), source) * largest


def companded(x: torch.Tensor, signed: bool, source: torch.Generator | None) -> torch.Tensor:
    """2x / (1 + |x|) of a first moment, the root of a second; scales are float16."""
    y = x if signed else x.sqrt()
    largest = y.abs().amax(1, keepdim=True).half().float()
    y = torch.where(largest > 0.0, y / largest, 0.0).clamp(-1.0, 1.0)
    if signed:
        y = _whole(2 * y / (1 + y.abs()) * 127, source).clamp(-127, 127) / 127
        return y / (2 - y.abs()) * largest
    return (_whole(y * 255, source).clamp(0, 255) / 255 * largest).square()


def logarithmic(x: torch.Tensor, signed: bool, source: torch.Generator | None) -> torch.Tensor:
    """Equal steps from a block's least logarithm to its largest: at most 16 or 32 octaves."""
    logs, codes = torch.log2(x.abs()), 126 if signed else 254
    high = logs.amax(1, keepdim=True)
    low = torch.where(x != 0.0, logs, math.inf).amin(1, keepdim=True)
    low = torch.maximum(low, high - (16 if signed else 32))
    step = ((high - low) / codes).clamp(min=1e-9)
    values = torch.exp2(low + _whole((logs - low) / step, source).clamp(0, codes) * step)
    if signed:  # what is below goes to zero or to the least code
        least = torch.exp2(low)
        border = 0.5 if source is None else torch.rand(x.shape, generator=source)
        small = torch.where(x.abs() / least > border, least, 0.0)
        values = torch.where(logs < low, small, values)
    return torch.where(x != 0.0, torch.copysign(values, x), 0.0)


def ours(m: torch.Tensor, v: torch.Tensor, source: torch.Generator) -> Pair:
    """The package's: bits of the float for second moments, units of their roots for first ones."""
    r = [
        torch.randint(0, 65536, (v.numel() // BLOCK, BLOCK), generator=source, dtype=torch.int32)
        for _ in range(2)
    ]
    second = eight_bit.decode_second(eight_bit.encode_second(v.view(-1, BLOCK), r[0]))
    records = eight_bit.encode_first(m.view(-1, BLOCK), second, r[1])
    return eight_bit.decode_first(records, second).view(m.shape), second.view(v.shape)


def bfloat16(m: torch.Tensor, v: torch.Tensor, source: torch.Generator) -> Pair:
    """16 bits, rounded stochastically: what 8 bits are beside."""
    r = torch.randint(0, 65536, (2, *m.shape), generator=source, dtype=torch.int32)
    return tuple(
        (x.view(torch.int32) + bits & -65536).view(torch.float32)
        for x, bits in zip((m, v), r, strict=True)
    )


CODES: dict[str, Code] = {
    "ours": ours,
    **{
        f"{name}, {how}": separately(one, stochastic=how == "stochastic")
        for name, one in (
            ("linear", linear),
            ("dynamic tree (bitsandbytes)", dynamic),
            ("companded (flashoptim)", companded),
            ("adaptive logarithmic", logarithmic),
        )
        for how in ("nearest", "stochastic")
    },
    "bfloat16, stochastic": bfloat16,
}


def updates(
    grads: Sequence[torch.Tensor], code: Code | None, betas: tuple[float, float] = (0.9, 0.999)
) -> Iterator[torch.Tensor]:
    """Yield AdamW's updates at a rate of 1, without eps, of moments in a code (None: float32)."""
    m, v = torch.zeros_like(grads[0]), torch.zeros_like(grads[0])
    source = torch.Generator().manual_seed(1)
    (beta1, beta2), step = betas, 0
    for step, g in enumerate(grads, 1):
        m = m + (g - m) * (1 - beta1)
        v = v * beta2 + g * (1 - beta2) * g
        root = (v / (1 - beta2**step)).sqrt()
        yield torch.where(m == 0.0, 0.0, m / (1 - beta1**step) / root.clamp(min=1e-30))
        if code is not None:
            m, v = code(m, v, source)


def error(grads: Sequence[torch.Tensor], code: Code) -> float:
    """Return the root mean square of what a code does to updates, as a share of that of updates.

    Of the second half of the steps, when second moments have settled.
    """
    off = total = 0.0
    pairs = zip(updates(grads, code), updates(grads, None), strict=True)
    for step, (coded, exact) in enumerate(pairs):
        if step >= len(grads) // 2:
            off += (coded - exact).double().square().sum().item()
            total += exact.double().square().sum().item()
    return math.sqrt(off / total)
