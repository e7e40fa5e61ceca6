"""The committed counts of bytes and launches, as ``python -m tools.traffic`` writes them."""

import functools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from bench.results import by_line
from fused_optim.ops import FAMILIES

COUNTS = Path(__file__).parent / "results" / "traffic.json"
FORMAT = 1


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


class Stream(NamedTuple):
    """Bytes per parameter of one tensor in a pass; touched is what memory must move at least."""

    loaded: float
    stored: float
    touched: float


Passes = dict[str, dict[str, Stream]]
"""Name of a pass to name of a tensor to its bytes. Tensors with a value per element only."""


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
def _rows() -> dict[Kind, dict[str, Any]]:
    return {Kind(**row["kind"]): row for row in counts()["rows"]}


def row(kind: Kind) -> dict[str, Any] | None:
    """Return the counts of a kind as they are in the file, or None where it was not counted."""
    return _rows().get(kind)


@functools.cache
def passes(kind: Kind) -> Passes | None:
    """Return the bytes per parameter of each pass of a step, or None where it was not counted."""
    found = row(kind)
    return found and {
        name: {
            tensor: Stream(*(b / found["parameters"] for b in each))
            for tensor, each in streams.items()
        }
        for name, streams in found["passes"].items()
    }


def moved(kind: Kind) -> float | None:
    """Return the bytes that a step loads and stores per parameter, or None if not counted.

    Scalars, statistics of rows and columns, and scratch are left out: they are a few hundredths.
    So is the norm that gradients are clipped to, see `clip_bytes`.
    """
    found = passes(kind)
    return found and sum(s.loaded + s.stored for each in found.values() for s in each.values())


def clip_bytes(kind: Kind) -> float:
    """Return the bytes per parameter that clipping to a norm adds: for Adafactor there are none."""
    if not FAMILIES[kind.op].elementwise:
        return 0.0
    return counts()["clip"]["bytes_per_parameter"][kind.grad_dtype]


def kind_of(
    op: str,
    dtype: Any,
    grad_dtype: Any = None,
    mode: str | None = None,
    state_dtype: Any = "float32",
    **flags: bool,
) -> Kind:
    """Return the kind that these arguments name; dtypes are torch's or their names.

    Gradients have the parameters' dtype and 16-bit parameters the default mode, where not given;
    the moments' dtype is ignored where there are none.
    """
    dtypes = (dtype, grad_dtype or dtype, state_dtype)
    name, grad, state = (each and str(each).removeprefix("torch.") for each in dtypes)
    if mode is None:
        mode = {"bfloat16": "split", "float16": "master"}.get(name, "none")
    kind = Kind(op, name, grad, mode, state, **flags)
    stateless = op == "adafactor" and not kind.beta1
    return replace(kind, state_dtype=None) if stateless else kind


def launches(op: str, *, clip: bool = False) -> int:
    """Return the kernel launches of a bucket's step; with ``clip``, those of the norm included.

    Adafactor's statistics yield the norm, so only elementwise updates launch more for it.
    """
    found = {r["launches"] for k, r in _rows().items() if k.op == op and not k.visited}
    if len(found) != 1:
        raise ValueError(f"launches of {op!r} were not counted; counted: {', '.join(FAMILIES)}")
    return found.pop() + (counts()["clip"]["launches"] if clip and FAMILIES[op].elementwise else 0)


def write(data: dict[str, Any], path: Path) -> None:
    """Write counts, one row a line, and forget what was read before."""
    path.write_text(by_line({"format": FORMAT, **data}, "rows"))
    for cached in (counts, _rows, passes):
        cached.cache_clear()


def row_of(kind: Kind, counted: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the file: what differs from `Kind`'s defaults, and the counts."""
    plain = asdict(Kind(kind.op))
    return {"kind": {k: v for k, v in asdict(kind).items() if k == "op" or v != plain[k]}} | counted
