"""Holds the CPU kernels of one instruction set to the bit reference; test_cpu.py starts it."""

from __future__ import annotations

import hashlib
import itertools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from entries import (  # noqa: E402
    DTYPES,
    STATE_DTYPES,
    VARIANTS,
    assert_stored,
    bucket_of,
    copied,
    entry_of,
    key_of,
    reference_of,
)
from prepared import OnBuckets  # noqa: E402

import fused_optim  # noqa: E402
from fused_optim.backends import cpu  # noqa: E402
from fused_optim.backends.interface import Launch  # noqa: E402
from fused_optim.ops import FAMILIES  # noqa: E402

KERNELS = (("adamw", False), ("adamw", True), ("lion", False))


def adafactor_digest() -> str:
    """Return a digest of what Adafactor makes of tensors that no vector divides evenly."""
    source, digest = torch.Generator().manual_seed(0), hashlib.sha256()
    for dtype, mode in VARIANTS:
        shapes = ((301,), (7, 45), (130, 1100), (40, 3, 3), (9, 70, 20), (1, 200))
        params = [torch.randn(shape, generator=source).to(dtype) for shape in shapes]
        options = {"beta1": 0.9, "state_dtype": torch.bfloat16}
        low_precision = "auto" if mode == "none" else mode
        for p in params:
            p.grad = torch.randn(p.shape, generator=source).to(dtype)
        fused_optim.Adafactor(params, backend="cpu", low_precision=low_precision, **options).step()
        for p in params:
            digest.update(p.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    """Run every kernel on sizes that end in the middle of vectors."""
    torch.manual_seed(0)
    ops, launch = OnBuckets(cpu), Launch(seed=0x123456789ABCDEF0)
    for (name, amsgrad), (dtype, mode) in itertools.product(KERNELS, VARIANTS):
        key = key_of(dtype, mode, amsgrad, name)
        storages = itertools.product(DTYPES, STATE_DTYPES)
        entries = [
            entry_of(key, (300 + number,), grad=grad, state=state, number=number, row=number % 3)
            for number, (grad, state) in enumerate(storages)
        ]
        bucket = bucket_of(key, entries)
        wanted = [reference_of(bucket, copied(entry), launch) for entry in entries]
        (op,) = FAMILIES[name].updates
        getattr(ops, op)(bucket, launch)
        for entry, values in zip(entries, wanted, strict=True):
            assert_stored(entry, values, f"{key}")
    print(cpu.instruction_set(), "clean", adafactor_digest())


if __name__ == "__main__":
    main()
