"""Bytes and launches of the CUDA kernels, counted on the host: ``python -m bench.traffic``.

Everything here reads the committed counts. The command alone runs the kernels (`bench.host_counts`
needs a C++ compiler), rewrites the counts, and with them the tables of docs/traffic_model.md.
"""

from __future__ import annotations

import argparse
import functools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

COUNTS = Path(__file__).parent / "results" / "traffic.json"

FORMAT = 1


@dataclass(frozen=True)
class Kind:
    """What decides how many bytes a step moves per parameter.

    Args:
        op: ``adamw`` or ``adafactor``.
        dtype: of the parameters.
        grad_dtype: of the gradients.
        mode: the kernel contract's: ``none`` for float32, else what is kept of the float32 value.
        state_dtype: of the moments; None where there are none, as in Adafactor without beta1.
        amsgrad: AdamW keeps a maximum.
        scale_parameter: Adafactor reads the parameter's root mean square.
        beta1: Adafactor keeps a first moment.
        factored: Adafactor keeps sums of rows and columns; not of vectors.
        visited: the tensor is so small that one block may do all of Adafactor's stages.
    """

    op: str
    dtype: str = "float32"
    grad_dtype: str = "float32"
    mode: str = "none"
    state_dtype: str | None = "float32"
    amsgrad: bool = False
    scale_parameter: bool = False
    beta1: bool = False
    factored: bool = True
    visited: bool = False


@dataclass(frozen=True)
class Stream:
    """One tensor as a pass sees it, in bytes per parameter.

    Args:
        loaded: by all loads, repeated ones included.
        stored: by all stores.
        touched: of the tensor, however often: what memory must deliver or take at least once.
    """

    loaded: float
    stored: float
    touched: float


Passes = dict[str, dict[str, Stream]]
"""Name of a pass to name of a tensor to its bytes. Tensors with a value per element only."""


@functools.cache
def counts(path: Path = COUNTS) -> dict[str, Any]:
    """Read a file of counts.

    Raises:
        ValueError: the file has another format.
    """
    data = json.loads(Path(path).read_text())
    if data.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {data.get('format')!r}, and format {FORMAT} is needed: "
            "count again with `python -m bench.traffic`"
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
    if found is None:
        return None
    numel = found["parameters"]
    return {
        name: {tensor: Stream(*(b / numel for b in each)) for tensor, each in streams.items()}
        for name, streams in found["passes"].items()
    }


def moved(kind: Kind) -> float | None:
    """Return the bytes that a step loads and stores per parameter, or None if not counted.

    Scalars, statistics of rows and columns, and scratch are left out: they are a few hundredths.
    So is the norm that gradients are clipped to, see `clip_bytes`.
    """
    found = passes(kind)
    if found is None:
        return None
    return sum(s.loaded + s.stored for streams in found.values() for s in streams.values())


def clip_bytes(kind: Kind) -> float:
    """Return the bytes per parameter that clipping to a norm adds: for Adafactor there are none."""
    if kind.op != "adamw":
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
    """Return the kind that these arguments name.

    Args:
        op: ``adamw`` or ``adafactor``.
        dtype: of the parameters, a torch.dtype or its name.
        grad_dtype: of the gradients; None for the parameters'.
        mode: as in the kernel contract; None for ``none`` or, of 16-bit parameters, the default.
        state_dtype: of the moments; ignored where there are none.
        **flags: `Kind`'s.
    """
    names = [
        None if each is None else str(each).removeprefix("torch.")
        for each in (dtype, grad_dtype, state_dtype)
    ]
    if mode is None:
        mode = {"bfloat16": "split", "float16": "master"}.get(names[0], "none")
    kind = Kind(op, names[0], names[1] or names[0], mode, names[2], **flags)
    if op == "adafactor" and not kind.beta1:
        kind = replace(kind, state_dtype=None)
    return kind


def launches(op: str, *, clip: bool = False) -> int:
    """Return the kernel launches of a bucket's step; with ``clip``, those of the norm included.

    Adafactor's statistics yield the norm, so only AdamW launches more for it.
    """
    found = {r["launches"] for k, r in _rows().items() if k.op == op and not k.visited}
    if len(found) != 1:
        raise ValueError(f"launches of {op!r} were not counted; counted: adamw, adafactor")
    return found.pop() + (counts()["clip"]["launches"] if clip and op == "adamw" else 0)


def write(path: Path = COUNTS) -> None:
    """Run the kernels on the host and write what they move, one row a line."""
    from bench import host_counts

    data = host_counts.measure()
    lines = [json.dumps(row) for row in data.pop("rows")]
    head = json.dumps({"format": FORMAT, **data}, indent=1).removesuffix("\n}")
    path.write_text(head + ',\n "rows": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n")


def row_of(kind: Kind, counted: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the file: what differs from `Kind`'s defaults, and the counts."""
    plain = asdict(Kind(kind.op))
    return {"kind": {k: v for k, v in asdict(kind).items() if k == "op" or v != plain[k]}} | counted


def main(arguments: list[str] | None = None) -> None:
    """Count, and bring the documentation up to the counts."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.traffic")
    parser.add_argument("--json", type=Path, help="write here, and leave the documentation")
    options = parser.parse_args(arguments)
    write(options.json or COUNTS)
    if options.json is None:
        from bench import model

        for cached in (counts, _rows, passes):
            cached.cache_clear()
        model.write_docs()


if __name__ == "__main__":
    main()
