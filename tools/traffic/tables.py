"""The tables of docs/traffic_model.md."""

from collections.abc import Collection, Mapping
from typing import Any

from bench import ROOT, pages, traffic
from bench.shapes import SHAPES, numel
from tools.traffic import dram
from tools.traffic.gpus import GPUS
from tools.traffic.l2 import Walk
from tools.traffic.predict import SHOWN, Setup, own_setups, predictions

PAGE = ROOT / "docs" / "traffic_model.md"
DOCUMENTED = ("one-16M", "gpt2-124M", "t5-base", "llama-8b-1of8")
"""The lists of shapes that the page shows."""

WALKS: dict[str, tuple[Mapping[str, Walk], Collection[str]]] = {
    "forwards": (dram.FORWARDS, ()),
    "tiles back": (dram.TILES_BACK, ()),
    "back and forth": (dram.BACK_AND_FORTH, ()),
    "back and forth, parameters streamed": (dram.BACK_AND_FORTH, ("param", "extra")),
}
"""Ways to walk, each with what is kept out of L2."""

MATRICES = ((512, 1024), (2048, 4096), (4096, 4096), (4096, 8192), (8192, 16384), (16384, 32768))
"""From 1 MiB to 1 GiB in bfloat16."""

WALKED_ON = "H200"


def gpu_table() -> str:
    head = ("GPU", "data sheet, GB/s", "copy, GB/s", "the copy is", "SMs", "L2, MiB")
    rows = [
        (
            *(gpu.name, f"{gpu.datasheet_gb_per_s:,.0f}", f"{gpu.copy_gb_per_s:,.0f}"),
            *(gpu.copy_source, gpu.processors, gpu.l2_bytes >> 20),
        )
        for gpu in GPUS.values()
    ]
    return pages.markdown(head, rows)


def prediction_table() -> str:
    return "\n".join(_predicted_on(shapes) for shapes in DOCUMENTED)


def _predicted_on(shapes: str) -> str:
    """Return the table of one list. Setups that differ in nothing but their names share a row."""
    alike: dict[tuple[Any, ...], list[Setup]] = {}
    for each in (own_setups()[key] for key in SHOWN):
        alike.setdefault((each.kind, each.clips), []).append(each)
    rows = []
    for same in alike.values():
        found = predictions(list(GPUS), [shapes], same[:1])
        names = ", ".join(each.name for each in same)
        counts = (f"{found[0].counted_bytes:.2f}", found[0].launches)
        rows.append((names, same[0].dtype, *counts, *(f"{each.ms:.3f}" for each in found)))
    head = ("setup", "dtype", "counted", "launches", *(f"{name}, ms" for name in GPUS))
    tensors, parameters = len(SHAPES[shapes]), numel(SHAPES[shapes])
    what = "1 tensor" if tensors == 1 else f"{tensors:,} tensors"
    return f"**{shapes}**: {what}, {parameters:,} parameters\n\n{pages.markdown(head, rows)}"


def walk_table() -> str:
    kind = traffic.kind_of("adafactor", "bfloat16", mode="stochastic")
    rows = []
    for shape in MATRICES:
        size, cells = shape[0] * shape[1], []
        for walks, streamed in WALKS.values():
            moved = dram.adafactor(kind, [shape], GPUS[WALKED_ON].grid, walks, streamed)
            passes = ("statistics", "update_sums", "apply")
            parts = " + ".join(f"{moved[name] / size:.2f}" for name in passes)
            cells.append(f"{parts} = {sum(moved.values()) / size:.2f}")
        rows.append((f"{shape[0]:,} by {shape[1]:,} ({2 * size >> 20} MiB)", *cells))
    return pages.markdown(("bfloat16 matrix", *WALKS), rows)


TABLES = {"gpus": gpu_table, "predictions": prediction_table, "walks": walk_table}
