"""The model's tables: on the terminal, and in docs/traffic_model.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import dram, gpus, pages, traffic
from bench.l2 import Walk
from bench.shapes import SHAPES, numel

if TYPE_CHECKING:
    from bench.model import Comparison, Prediction, Setup

PAGE = Path(__file__).parent.parent / "docs" / "traffic_model.md"
DOCUMENTED = ("one-16M", "gpt2-124M", "t5-base", "llama-8b-1of8")
"""The lists of shapes that the page shows."""

PARAMETERS = ("param", "extra")
WALKS: dict[str, tuple[Mapping[str, Walk], Collection[str]]] = {
    "forwards": (dram.FORWARDS, ()),
    "tiles back": (dram.TILES_BACK, ()),
    "back and forth": (dram.BACK_AND_FORTH, ()),
    "back and forth, parameters streamed": (dram.BACK_AND_FORTH, PARAMETERS),
}
"""Ways to walk, each with what is kept out of L2."""

MATRICES = ((512, 1024), (2048, 4096), (4096, 4096), (4096, 8192), (8192, 16384), (16384, 32768))
"""From 1 MiB to 1 GiB in bfloat16."""

WALKED_ON = "H200"


def inputs() -> dict[str, Any]:
    """Return what predictions rest on besides the counts."""
    return {
        "gpus": [dataclasses.asdict(gpu) for gpu in gpus.GPUS.values()],
        "l2_share": gpus.L2_SHARE,
        "launch_us": gpus.LAUNCH_US,
        "blocks_per_sm": gpus.BLOCKS_PER_SM,
        "visit_limit": traffic.counts()["visit_limit"],
    }


def _markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def gpu_table() -> str:
    """Return the inputs, as Markdown."""
    head = ("GPU", "data sheet, GB/s", "copy, GB/s", "the copy is", "SMs", "L2, MiB")
    rows = [
        (
            *(gpu.name, f"{gpu.datasheet_gb_per_s:,.0f}", f"{gpu.copy_gb_per_s:,.0f}"),
            *(gpu.copy_source, str(gpu.processors), str(gpu.l2_bytes >> 20)),
        )
        for gpu in gpus.GPUS.values()
    ]
    return _markdown(head, rows)


def prediction_table() -> str:
    """Return predicted milliseconds, a table per list of shapes, as Markdown."""
    return "\n".join(_predicted_on(shapes) for shapes in DOCUMENTED)


def _predicted_on(shapes: str) -> str:
    """Return the table of one list. Setups that differ in nothing but their names share a row."""
    from bench.model import SHOWN, own_setups, predictions

    alike: dict[tuple[Any, ...], list[Setup]] = {}
    for each in (own_setups()[key] for key in SHOWN):
        alike.setdefault((each.kind, each.clips), []).append(each)
    rows = []
    for same in alike.values():
        found = predictions(list(gpus.GPUS), [shapes], same[:1])
        names = ", ".join(each.name for each in same)
        counts = (f"{found[0].counted_bytes:.2f}", str(found[0].launches))
        rows.append((names, same[0].dtype, *counts, *(f"{each.ms:.3f}" for each in found)))
    head = ("setup", "dtype", "counted", "launches", *(f"{name}, ms" for name in gpus.GPUS))
    tensors, parameters = len(SHAPES[shapes]), numel(SHAPES[shapes])
    what = "1 tensor" if tensors == 1 else f"{tensors:,} tensors"
    return f"**{shapes}**: {what}, {parameters:,} parameters\n\n{_markdown(head, rows)}"


def walk_table() -> str:
    """Return bytes of memory per parameter by walk and size of a matrix, as Markdown."""
    gpu = gpus.GPUS[WALKED_ON]
    kind = traffic.kind_of("adafactor", "bfloat16", mode="stochastic")
    blocks, capacity = gpu.processors * gpus.BLOCKS_PER_SM, gpu.l2_bytes * gpus.L2_SHARE
    head = ("bfloat16 matrix", *WALKS)
    rows = []
    for shape in MATRICES:
        size = shape[0] * shape[1]
        cells: list[str] = []
        for walks, streamed in WALKS.values():
            moved = dram.adafactor(kind, [shape], blocks, capacity, walks, streamed)
            each = {name: f"{value / size:.2f}" for name, value in moved.items()}
            parts = " + ".join(each[name] for name in ("statistics", "update_sums", "apply"))
            cells.append(f"{parts} = {sum(moved.values()) / size:.2f}")
        rows.append((f"{shape[0]:,} by {shape[1]:,} ({2 * size >> 20} MiB)", *cells))
    return _markdown(head, rows)


def with_tables(page: str) -> str:
    """Return the page with its tables brought up to the counts."""
    tables = {"gpus": gpu_table, "predictions": prediction_table, "walks": walk_table}
    for name, table in tables.items():
        page = pages.replaced(page, name, table())
    return page


def print_predictions(found: Iterable[Prediction]) -> None:
    """Print predictions and what they rest on."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="predicted, not measured", caption=_caption(), caption_justify="left")
    for column in ("shapes", "setup", "GPU"):
        table.add_column(column, overflow="fold")
    for column in ("counted B/param", "memory B/param", "launches", "predicted ms"):
        table.add_column(column, justify="right")
    for each in found:
        figures = (f"{each.counted_bytes:.2f}", f"{each.dram_bytes:.2f}")
        setup = f"{each.setup}, {each.dtype}"
        table.add_row(
            *(each.shapes, setup, each.gpu, *figures, str(each.launches), f"{each.ms:.3f}")
        )
    Console().print(table)


def _caption() -> str:
    copies = ", ".join(f"{g.name} {g.copy_gb_per_s:,.0f} GB/s" for g in gpus.GPUS.values())
    return (
        f"Inputs: copy bandwidth {copies}; {gpus.L2_SHARE:.0%} of L2 kept between passes; "
        f"{gpus.LAUNCH_US:g} us a launch. bench/gpus.py says where they are from."
    )


def print_comparison(found: list[Comparison]) -> None:
    """Print measured rows beside their predictions."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not found:
        console.print("the file has no measured rows of this package's CUDA or Triton kernels")
        return
    table = Table(title="measured beside predicted")
    for column in ("shapes", "setup"):
        table.add_column(column, overflow="fold")
    for column in ("measured ms", "predicted ms", "measured/predicted"):
        table.add_column(column, justify="right")
    for each in found:
        both = (each.why, "")
        if each.ratio is not None:
            both = (f"{each.predicted_ms:.3f}", f"{each.ratio:.2f}")
        table.add_row(each.shapes, f"{each.setup}, {each.dtype}", f"{each.measured_ms:.3f}", *both)
    console.print(table)
