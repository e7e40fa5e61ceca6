"""What a step costs that is counted and not timed: bytes moved, and launches.

The counts are committed, as ``python -m tools.traffic`` writes them.
"""

import functools
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.results import write as replace_file
from bench.setups import DTYPES, OURS
from bench.subject import Subject
from fused_optim import precision
from fused_optim.ops import FAMILIES

COUNTS = Path(__file__).parent / "results" / "traffic.json"
FORMAT = 1

_MOST_TRACED = 2000
"""Tensors of a peer's step that is traced: of loops over more, torch takes minutes to make a table,
and no goal speaks of what peers launch."""

_LAUNCH = re.compile(r"cu(da)?Launch(Cooperative)?Kernel")


@dataclass(frozen=True)
class Kind:
    """What decides how many bytes a step moves per parameter."""

    op: str  # a name of fused_optim.ops.FAMILIES
    dtype: str = "float32"
    grad_dtype: str = "float32"
    mode: str = "none"  # the kernel contract's; none for float32
    state_dtype: str | None = "float32"  # None without moments, as in Adafactor without beta1
    amsgrad: bool = False
    scale_parameter: bool = False  # Adafactor reads the parameter's root mean square
    beta1: bool = False  # Adafactor keeps a first moment
    factored: bool = True  # Adafactor keeps sums of rows and columns; not of vectors
    visited: bool = False  # so small a tensor that one block may do all of Adafactor's stages


Passes = dict[str, dict[str, np.ndarray]]
"""Name of a pass to name of a tensor to its bytes per parameter: loaded, stored, and touched, which
is what memory must move at least. Tensors with a value per element only."""


@functools.cache
def counts(path: Path = COUNTS) -> dict[str, Any]:
    """Read a file of counts; one of another format is a ValueError."""
    data = json.loads(Path(path).read_text())
    if data.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {data.get('format')!r}, and format {FORMAT} is needed: "
            "count again with `python -m tools.traffic`"
        )
    return data


@functools.cache
def rows() -> dict[Kind, dict[str, Any]]:
    """Return the counts of every kind as they are in the file."""
    return {Kind(**row["kind"]): row for row in counts()["rows"]}


@functools.cache
def passes(kind: Kind) -> Passes | None:
    """Return the bytes per parameter of each pass of a step, or None where it was not counted."""
    found = rows().get(kind)
    return found and {
        name: {tensor: np.array(each) / found["parameters"] for tensor, each in streams.items()}
        for name, streams in found["passes"].items()
    }


def moved(kind: Kind) -> float | None:
    """Return the bytes that a step loads and stores per parameter, or None if not counted.

    Scalars, statistics of rows and columns, and scratch are left out: they are a few hundredths.
    So is the norm that gradients are clipped to, see `clip_bytes`.
    """
    found = passes(kind)
    return found and float(sum(s[:2].sum() for each in found.values() for s in each.values()))


def clip_bytes(kind: Kind) -> float:
    """Return the bytes per parameter that clipping to a norm adds: for Adafactor there are none."""
    if not FAMILIES[kind.op].elementwise:
        return 0.0
    return counts()["clip"]["bytes_per_parameter"][kind.grad_dtype]


def kind_of(optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> Kind:
    """Return what one of this package's optimizers does with matrices of a dtype, as counted.

    Gradients have the parameters' dtype. Whether it clips to a norm is no part of it.
    """
    group, op = optimizer.settings(optimizer.param_groups[0]), optimizer._family
    beta1, name = group.get("beta1") is not None, str(dtype).removeprefix("torch.")
    state = precision.resolve_state_dtype(group["state_dtype"], dtype)[0]
    return Kind(
        *(op, name, name, precision.resolve_mode(group["low_precision"], dtype)),
        None if op == "adafactor" and not beta1 else str(state).removeprefix("torch."),
        amsgrad=bool(group.get("amsgrad")),
        # torch's Adafactor always does, transformers' on request.
        scale_parameter=op == "adafactor" and group.get("scale_parameter", True),
        beta1=beta1,
    )


def counted_launches(op: str, *, clip: bool = False) -> int:
    """Return the kernel launches of a bucket's step; with ``clip``, those of the norm included.

    Adafactor's statistics yield the norm, so only elementwise updates launch more for it.
    """
    found = {row["launches"] for kind, row in rows().items() if kind.op == op and not kind.visited}
    if len(found) != 1:
        raise ValueError(f"launches of {op!r} were not counted; counted: {', '.join(FAMILIES)}")
    return found.pop() + (counts()["clip"]["launches"] if clip and FAMILIES[op].elementwise else 0)


def traffic_bytes(subject: Subject) -> float | None:
    """Return the bytes per parameter that a step reads and writes, where they are known.

    Those of this package's kernels were counted; one-pass peers follow from their state.
    """
    if subject.setup.source == OURS:
        return None if subject.backend == "eager" else _counted_bytes(subject)
    if not subject.setup.one_pass:
        return None
    stored = subject.param_bytes() + subject.state_bytes()
    return (2 * stored + subject.param_bytes()) / subject.parameters


def launches(subject: Subject) -> int | None:
    """Return how many kernels a step launches: traced on a GPU, from the counts elsewhere."""
    ours = subject.setup.source == OURS
    if subject.device.type == "cuda":
        return _traced_launches(subject) if ours or subject.tensors <= _MOST_TRACED else None
    if not ours or subject.backend in ("cpu", "eager"):
        return None
    return counted_launches(subject.setup.op, clip=subject.optimizer.max_grad_norm is not None)


def _counted_bytes(subject: Subject) -> float | None:
    """Return the mean over the list, as vectors and matrices of Adafactor differ."""
    kind = kind_of(subject.optimizer, DTYPES[subject.dtype])
    clips = subject.optimizer.max_grad_norm is not None
    total = clip_bytes(kind) * subject.parameters if clips else 0.0
    for param in subject.params:
        factored = FAMILIES[kind.op].elementwise or param.dim() > 1
        bytes_moved = moved(replace(kind, factored=factored))
        if bytes_moved is None:
            return None
        total += bytes_moved * param.numel()
    return total / subject.parameters


def _traced_launches(subject: Subject) -> int | None:
    from torch.profiler import profile

    torch.cuda.synchronize(subject.device)
    try:
        with profile(acc_events=True) as trace:  # without it torch 2.11 warns
            subject.step()
            torch.cuda.synchronize(subject.device)
    except RuntimeError:  # another tool holds the device's tracing interface
        return None
    counted = sum(e.count for e in trace.key_averages() if _LAUNCH.match(e.key))
    return counted or None  # no step launches nothing: tracing is not permitted here


def write(data: dict[str, Any], path: Path) -> None:
    """Write counts, one row a line for diffs that can be read, and forget what was read before.

    Of a kind the file has what differs from `Kind`'s defaults.
    """
    lines = []
    for row in data["rows"]:
        plain = asdict(Kind(row["kind"].op))
        kind = {k: v for k, v in asdict(row["kind"]).items() if k == "op" or v != plain[k]}
        lines.append(json.dumps({**row, "kind": kind}))
    head = json.dumps({"format": FORMAT, **data, "rows": []}, indent=1).removesuffix("]\n}")
    text = ",\n  ".join(lines)
    replace_file(path, f"{head}\n  {text}\n ]\n}}\n")
    for cached in (counts, rows, passes):
        cached.cache_clear()
