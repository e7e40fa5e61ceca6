"""Predicted times of a step, per GPU. Nothing that is returned here was measured.

Time is bytes of memory over the bandwidth of a copy, plus launches times what a launch adds. The
bytes are counted (`bench.traffic`), less what L2 keeps between Adafactor's passes (`dram`).
"""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from bench import costs, setups, traffic
from bench.shapes import SHAPES, Shapes, numel
from bench.traffic import Kind
from fused_optim.ops import FAMILIES
from tools.traffic import dram, gpus
from tools.traffic.gpus import GPUS, Gpu
from tools.traffic.l2 import Walk


@dataclass(frozen=True)
class Setup:
    """One of `bench.setups` with a dtype: what its kernels do."""

    name: str
    dtype: str
    kind: Kind
    clips: bool = False


@functools.cache
def own_setups() -> dict[tuple[str, str], Setup]:
    """Return this package's setups, by name and dtype as in the rows of a result file.

    What each moves is read off an optimizer of it; torch takes seconds to construct its first.
    """
    found = {}
    for each in setups.SETUPS.values():
        for dtype in each.dtypes if each.source == setups.OURS else ():
            param = torch.zeros(1, dtype=setups.DTYPES[dtype], requires_grad=True)
            optimizer = each.optimizer([param])
            kind = costs.kind_of(optimizer, param.dtype)
            clips = optimizer.max_grad_norm is not None
            found[each.name, dtype] = Setup(each.name, dtype, kind, clips)
    return found


_SHOWN = {
    "fp32": ("AdamW", "AdamWeightDecay"),
    "bf16": (
        *("AdamW", "AdamWeightDecay", "torch_compat.AdamW", "torch_compat.AdamW amsgrad"),
        *("Adafactor", "Adafactor stochastic", "torch_compat.Adafactor"),
        *("Adafactor T5", "Adafactor T5 stochastic"),
    ),
}
SHOWN = tuple((name, dtype) for dtype, names in _SHOWN.items() for name in names)
"""The setups that tables show where no others are asked for."""


@dataclass(frozen=True)
class Prediction:
    """A predicted step; bytes are per parameter.

    Counted are those that kernels load and store, and of memory is what L2 leaves of them, by pass.
    """

    setup: str
    dtype: str
    shapes: str
    gpu: str
    parameters: int
    counted_bytes: float
    dram_bytes: float
    passes: dict[str, float]
    launches: int
    ms: float


def launches(setup: Setup, shapes: Shapes) -> int:
    """Return the launches of a step; a bucket whose tensors are all visited once has fewer."""
    kinds = {dram.kind_of_tensor(setup.kind, shape) for shape in shapes}
    if setup.kind.op == "adafactor" and all(kind.visited for kind in kinds):
        return max(traffic.row(kind)["launches"] for kind in kinds)
    return traffic.launches(setup.kind.op, clip=setup.clips)


def predict(
    setup: Setup,
    shapes: Shapes,
    gpu: Gpu,
    name: str = "",
    walks: Mapping[str, Walk] | None = None,
) -> Prediction:
    """Predict a step on tensors of one dtype; ``walks`` as in `dram.adafactor`."""
    total = numel(shapes)
    if FAMILIES[setup.kind.op].elementwise:
        counted = float(traffic.moved(setup.kind) * total)
        passes = {"step": counted}
    else:
        kinds = [(dram.kind_of_tensor(setup.kind, s), numel([s])) for s in shapes]
        counted = sum(traffic.moved(kind) * elements for kind, elements in kinds)
        passes = dram.adafactor(setup.kind, shapes, gpu.grid, walks)
    if setup.clips and (norm := traffic.clip_bytes(setup.kind)):
        passes = {"norm": norm * total, **passes}
        counted += norm * total
    moved, number = sum(passes.values()), launches(setup, shapes)
    return Prediction(
        *(setup.name, setup.dtype, name, gpu.name, total),
        counted_bytes=counted / total,
        dram_bytes=moved / total,
        passes={key: value / total for key, value in passes.items()},
        launches=number,
        ms=moved / gpu.copy_gb_per_s / 1e6 + number * gpus.LAUNCH_US / 1e3,
    )


def predictions(
    chosen: Sequence[str], names: Sequence[str], shown: Sequence[Setup]
) -> list[Prediction]:
    return [
        predict(setup, SHAPES[shapes], GPUS[gpu], shapes)
        for shapes in names
        for setup in shown
        for gpu in chosen
    ]


def compare(path: Path) -> pd.DataFrame:
    """Return this package's rows of a result file of ``python -m bench``, with predictions.

    The file's own copy bandwidth, L2 and SMs take the place of the table's. The quotient is 1 where
    the model is right, and above where it is too hopeful.
    """
    data = json.loads(Path(path).read_text())
    gpu = gpus.measured(data["machine"], data["copy"])
    found = []
    for row in data["rows"]:
        if row["source"] != setups.OURS or row["backend"] == "eager":
            continue
        inputs = {
            "such GPU": gpu,
            "such setup": own_setups().get((row["optimizer"], row["dtype"])),
            "such shapes": SHAPES.get(row["shapes"]),
        }
        why = ", ".join(f"no {what}" for what, there in inputs.items() if there is None)
        ms = None if why else predict(inputs["such setup"], inputs["such shapes"], gpu).ms
        case = {key: row[key] for key in ("shapes", "optimizer", "dtype")}
        found.append({**case, "measured ms": row["ms"], "predicted ms": ms, "why not": why})
    table = pd.DataFrame(found)
    if found:
        predicted = table["predicted ms"] = table["predicted ms"].astype(float)
        table.insert(5, "measured/predicted", table["measured ms"] / predicted)
    return table
