"""Predicted times of a step, per GPU: ``python -m tools.traffic.model``. None is measured."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import setups, traffic
from bench.shapes import SHAPES
from tools.traffic import gpus, tables
from tools.traffic.gpus import GPUS
from tools.traffic.predict import SHOWN, Comparison, Prediction, compare, own_setups, predictions


def main(arguments: list[str] | None = None) -> None:
    """Print predictions, or how measurements compare with them."""
    parser = argparse.ArgumentParser("python -m tools.traffic.model", description=__doc__)
    parser.add_argument("--gpus", nargs="+", choices=GPUS, default=list(GPUS), metavar="GPU")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="LIST")
    parser.add_argument("--only", metavar="TEXTS", help="setups whose names contain one of these")
    parser.add_argument("--json", type=Path, help="write the predictions and their inputs here")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="written by `python -m bench`")
    parser.add_argument("--docs", action="store_true", help="rewrite docs/traffic_model.md")
    options = parser.parse_args(arguments)
    if options.docs:
        tables.write()
        return
    if options.compare:
        _print_comparison(compare(options.compare))
        return
    shown = [
        setup
        for key, setup in own_setups().items()
        if (setups.named(setup.name, options.only) if options.only else key in SHOWN)
    ]
    if not shown:
        parser.error(f"--only {options.only}: no setup of this package has that in its name")
    found = predictions(options.gpus, options.shapes, shown)
    _print_predictions(found)
    if options.json:
        rows = [dataclasses.asdict(each) for each in found]
        data = {"predicted": True, "inputs": inputs(), "rows": rows}
        options.json.write_text(json.dumps(data) + "\n")


def inputs() -> dict[str, Any]:
    """Return what predictions rest on besides the counts."""
    return {
        "gpus": [dataclasses.asdict(gpu) for gpu in GPUS.values()],
        "l2_share": gpus.L2_SHARE,
        "launch_us": gpus.LAUNCH_US,
        "blocks_per_sm": gpus.BLOCKS_PER_SM,
        "visit_limit": traffic.counts()["visit_limit"],
    }


def _table(words: Iterable[str], figures: Iterable[str], **options: Any) -> Table:
    table = Table(**options)
    for column in words:
        table.add_column(column, overflow="fold")
    for column in figures:
        table.add_column(column, justify="right")
    return table


def _print_predictions(found: Iterable[Prediction]) -> None:
    copies = ", ".join(f"{g.name} {g.copy_gb_per_s:,.0f} GB/s" for g in GPUS.values())
    caption = (
        f"Inputs: copy bandwidth {copies}; {gpus.L2_SHARE:.0%} of L2 kept between passes; "
        f"{gpus.LAUNCH_US:g} us a launch. tools/traffic/gpus.py says where they are from."
    )
    table = _table(
        ("shapes", "setup", "GPU"),
        ("counted B/param", "memory B/param", "launches", "predicted ms"),
        title="predicted, not measured",
        caption=caption,
        caption_justify="left",
    )
    for each in found:
        names = (each.shapes, f"{each.setup}, {each.dtype}", each.gpu)
        figures = (f"{each.counted_bytes:.2f}", f"{each.dram_bytes:.2f}", str(each.launches))
        table.add_row(*names, *figures, f"{each.ms:.3f}")
    Console().print(table)


def _print_comparison(found: list[Comparison]) -> None:
    if not found:
        Console().print("the file has no measured rows of this package's CUDA or Triton kernels")
        return
    figures = ("measured ms", "predicted ms", "measured/predicted")
    table = _table(("shapes", "setup"), figures, title="measured beside predicted")
    for each in found:
        both = (each.why, "")
        if each.ratio is not None:
            both = (f"{each.predicted_ms:.3f}", f"{each.ratio:.2f}")
        table.add_row(each.shapes, f"{each.setup}, {each.dtype}", f"{each.measured_ms:.3f}", *both)
    Console().print(table)


if __name__ == "__main__":
    main()
