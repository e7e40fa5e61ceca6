"""Counts every byte that the CUDA kernels touch, compiled as C++: ``python -m tools.traffic``."""

import argparse
import math
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench import ROOT, traffic
from bench.traffic import Kind
from fused_optim.backends.interface import Launch
from fused_optim.ops import FAMILIES

sys.path.append(str(ROOT / "tests/support"))

import host_module  # noqa: E402
from host_traces import PASSES, bucket_of, traces  # noqa: E402

LARGE = (272, 256)  # has several tiles, and is too large for one visit
SMALL = (64, 64)
ELEMENTWISE = (64, 512)  # four chunks, for ops that ignore shapes

MODES = {
    "float32": ("none",),
    "bfloat16": ("nearest", "stochastic", "kahan", "split", "master"),
    "float16": ("nearest", "stochastic", "kahan", "master"),
}


def count(kind: Kind) -> dict[str, Any]:
    """Return launches and, by pass and tensor, bytes loaded, stored and touched."""
    elementwise = FAMILIES[kind.op].elementwise
    shape = SMALL if kind.visited else ELEMENTWISE if elementwise else LARGE
    bucket = bucket_of(kind, [shape if kind.factored else (math.prod(shape),)])
    entry, steps = bucket.entries[0], traces(bucket)
    names = ("grad", "param", "extra", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    tensors = {name: getattr(entry, name) for name in names}
    numel, passes = entry.param.numel(), {}
    for step in steps:
        found = {n: step.of(t) for n, t in tensors.items() if t is not None and t.numel() >= numel}
        if moved := {name: _bytes(each) for name, each in found.items() if len(each)}:
            passes[step.name] = moved
    return {"parameters": numel, "launches": len(steps), "passes": passes}


def _bytes(found: np.ndarray) -> list[int]:
    table = pd.DataFrame(found)
    # Lanes of a warp that load from one address at once, as a block's scale, load it together.
    table["nth"] = table.groupby(["block", "thread", "stores"]).cumcount()
    table["warp"] = table.thread // 32
    table = table.drop_duplicates(["block", "warp", "nth", "stores", "address"])
    moved = table.groupby("stores").bytes.sum()
    table = table.sort_values("address")
    end = (table.address + table.bytes).cummax()  # accesses to one address may differ in size
    touched = (end - np.maximum(table.address, end.shift(fill_value=0))).sum()
    return [int(n) for n in (moved.get(0, 0), moved.get(1, 0), touched)]


def kinds() -> Iterator[Kind]:
    for dtype, modes in MODES.items():
        grads = (dtype, "bfloat16" if dtype == "float32" else "float32")
        for mode, grad in product(modes, grads):
            for state, amsgrad in product(("float32", "bfloat16", "uint8"), (False, True)):
                yield Kind("adamw", dtype, grad, mode, state, amsgrad)
                if not amsgrad and state != "uint8":
                    yield Kind("lion", dtype, grad, mode, state)
            for scale, beta1, *where in product((False, True), repeat=4):
                for state in ("float32", "bfloat16") if beta1 else (None,):
                    yield Kind("adafactor", dtype, grad, mode, state, False, scale, beta1, *where)


def clip_counts() -> dict[str, Any]:
    """Return the counts of the gradient norm of an elementwise update, by the gradients' dtype."""
    cuda, found = host_module.kernels(), {}
    for name in MODES:
        bucket = bucket_of(Kind("adamw", grad_dtype=name), [ELEMENTWISE])
        cuda.backend._C.take_counters()
        cuda.grad_square_sums(bucket, Launch())
        counted = cuda.backend._C.take_counters()
        found[name] = (counted["bytes_loaded"] + counted["bytes_stored"]) / math.prod(ELEMENTWISE)
    return {"launches": counted["launches"], "bytes_per_parameter": found}


def visit_limit() -> int:
    """Return how many elements a tensor may have for one block to run all of Adafactor's stages.

    Square matrices of powers of two are tried. The limit is 0 if no block runs all stages.
    """
    limit = 0
    for bits in range(6, 19):
        kind = Kind("adafactor", "bfloat16", "bfloat16", "split", None)
        bucket = bucket_of(kind, [(1 << bits // 2, 1 << bits - bits // 2)])
        if any(len(s.of(bucket.entries[0].grad)) for s in traces(bucket) if s.name != "finalise"):
            break
        limit = 1 << bits
    return limit


# --- the order in which Adafactor's passes walk through a matrix ----------------------------------


def walks() -> dict[str, Any]:
    """Return the walk of each pass, and the elements of tiles, from the largest to the smallest."""
    kind = Kind("adafactor", "bfloat16", "bfloat16", "stochastic", None)
    bucket = bucket_of(kind, [(1024, 1024)])
    grad, found = bucket.entries[0].grad, {}
    for trace in traces(bucket, 1 << 20):  # blocks, so many that every item has its own
        if len(accesses := trace.of(grad)):
            smallest, found[trace.name] = _walk(accesses, grad.data_ptr())
    cuts = range(host_module.backend()._C.ADAFACTOR_MOST_CUT, -1, -1)
    return {"sizes": [smallest << cut for cut in cuts], "walks": found}


def _walk(accesses: np.ndarray, first: int) -> tuple[int, dict[str, str]]:
    """Return the elements of a tile, and the directions of tiles and of steps within them.

    Args:
        accesses: to a 2-byte gradient; each block has one item.
        first: the gradient's address.
    """
    index = pd.Series((accesses["address"] - first) // 2)
    lowest = index.groupby(accesses["block"]).min()
    one = accesses["block"] == lowest.index[0]
    thread = index[one & (accesses["thread"] == 0)]
    walk = {"tiles": _direction(lowest.to_numpy()), "steps": _direction(thread.to_numpy())}
    return int(accesses["bytes"][one].sum()) // 2, walk


def _direction(values: np.ndarray) -> str:
    """Return whether values rise or fall; a few neighbours may be loaded at once, in any order."""
    for together in (1, 2, 4):
        groups = values[: len(values) // together * together].reshape(-1, together).mean(1)
        for name, sign in (("forwards", 1), ("backwards", -1)):
            if (sign * np.diff(groups) > 0).all():
                return name
    return "mixed"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m tools.traffic", description=__doc__)
    parser.add_argument("--json", type=Path, default=traffic.COUNTS, help="write here")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    limit = visit_limit()
    if limit >= math.prod(LARGE):
        raise RuntimeError(f"LARGE = {LARGE} must have more than {limit} elements, visited once")
    data = {
        "passes": list(PASSES.values()),
        "clip": clip_counts(),
        "visit_limit": limit,
        "tiles": walks(),
        "rows": [{"kind": kind, **count(kind)} for kind in kinds()],
    }
    traffic.write(data, options.json)


if __name__ == "__main__":
    main()
