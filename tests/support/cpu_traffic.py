"""Counts every byte that the CPU kernels load and store: ``python tests/support/cpu_traffic.py``.

The kernels are compiled as for ThreadSanitizer, but with counters in the place of its runtime, and
repeat calls of the installed ones: cpu_replay.py. Tensors with a value per element count, with the
scales of moments in 8 bits, as they do in bench/results/traffic.json.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import bench_package  # noqa: F401
import cpu_module
import cpu_replay
import host_module
import numpy as np
import torch
from cpu_recording import ARENA, Recording
from entries import tensors_of
from host_traces import bucket_of
from offloading_page import COUNTS, KINDS

from bench.traffic import Kind
from fused_optim.backends.interface import Launch
from fused_optim.ops import FAMILIES

SMALL, LARGE = (64, 64), (600, 300)
"""Matrices that one thread takes through all stages, and that all threads take stage by stage."""


def program() -> cpu_replay.Program:
    """Return the program that counts."""
    setup = cpu_module.recipe()
    every = setup["X86_KERNELS"] if cpu_replay.X86 else {"base": ("base", "")}
    # memcpy has to stay a call, which the linker has counted.
    flags = "-fsanitize=thread -fno-builtin-memcpy"
    sets = {name: (isa, f"{of} {flags}") for name, (isa, of) in every.items()}
    own = ("-O1", "-DFUSED_OPTIM_COUNTS", "-Wl,--wrap=memcpy")
    return cpu_replay.build(host_module.COMPILER, *own, sets=sets)


def count(cpu: ModuleType, kinds: tuple[Kind, ...] = KINDS) -> list[dict[str, Any]]:
    """Return for each kind the bytes of a step, per parameter.

    ``moved`` are loaded or stored, ``once`` are those if whatever is loaded or stored several times
    is so once. Both are rounded to hundredths.
    """
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            shape = SMALL if kind.visited else LARGE
            bucket = bucket_of(kind, [shape])
            calls, counts = Path(folder) / "calls", Path(folder) / "counts"
            with open(calls, "wb") as file:
                recording = Recording(cpu, file)
                ops = [op for op in FAMILIES[kind.op].ops if op != "grad_square_sums"]
                recording.run(ops, bucket, Launch(sums_wanted=False), kind.op)
            done = program().replay(calls, 1, counts=counts, FUSED_OPTIM_CPU_ISA="x86-64-v2")
            assert done.returncode == 0, done.stdout + done.stderr
            found = np.fromfile(counts, np.uint16)
            moved = _sums(found, recording.recorder.written, bucket.entries[0])
            per = {name: round(n / math.prod(shape), 2) for name, n in moved.items()}
            rows.append({"kind": _short(kind), **per})
    return rows


def _sums(found: np.ndarray, written: list[Any], entry: Any) -> dict[str, int]:
    numel, sums, first = entry.param.numel(), {"moved": 0, "once": 0}, 0
    for _, memory in written:
        both = found[first : first + 2 * memory.bytes].reshape(2, memory.bytes)
        first += 2 * memory.bytes
        for tensor in tensors_of(entry).values():
            if tensor.numel() >= numel:
                at = memory.place(tensor.data_ptr()) - ARENA
                of = both[:, at : at + tensor.nbytes]
                sums["moved"] += int(of.sum(dtype=np.int64))
                sums["once"] += int((of > 0).sum())
    assert first == len(found), "the program has counted other calls"
    return sums


def _short(kind: Kind) -> dict[str, Any]:
    """Return what differs from the defaults of a kind, and its op."""
    plain = asdict(Kind(kind.op))
    return {k: v for k, v in asdict(kind).items() if k == "op" or v != plain[k]}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    from fused_optim.backends import cpu

    lines = ",\n  ".join(map(json.dumps, count(cpu)))
    COUNTS.write_text(f'{{\n "rows": [\n  {lines}\n ]\n}}\n')


if __name__ == "__main__":
    main()
