"""Predicted times of a step, per GPU: ``python -m tools.traffic.model``. None is measured."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd

from bench import pages, setups, traffic
from bench.display import Display
from bench.shapes import SHAPES
from bench.tables import frame
from tools.traffic import gpus, tables
from tools.traffic.gpus import GPUS
from tools.traffic.predict import SHOWN, compare, own_setups, predictions


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m tools.traffic.model", description=__doc__)
    parser.add_argument("--gpus", nargs="+", choices=GPUS, default=list(GPUS), metavar="GPU")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="LIST")
    parser.add_argument("--only", metavar="TEXTS", help="setups whose names contain one of these")
    parser.add_argument("--json", type=Path, help="write the predictions and their inputs here")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="written by `python -m bench`")
    parser.add_argument("--docs", action="store_true", help="rewrite docs/traffic_model.md")
    options = parser.parse_args(arguments)
    if options.docs:
        pages.rewrite(tables.PAGE, tables.TABLES)
        return
    display = Display()
    if options.compare:
        found = compare(options.compare)
        if found.empty:
            display.say("the file has no measured rows of this package's CUDA or Triton kernels")
        else:
            display.table("measured beside predicted", found)
        return
    shown = [
        setup
        for key, setup in own_setups().items()
        if (setups.named(setup.name, options.only) if options.only else key in SHOWN)
    ]
    if not shown:
        parser.error(f"--only {options.only}: no setup of this package has that in its name")
    found = predictions(options.gpus, options.shapes, shown)
    display.table("predicted, not measured", _columns(frame(found)))
    copies = ", ".join(f"{g.name} {g.copy_gb_per_s:,.0f} GB/s" for g in GPUS.values())
    display.say(
        f"Inputs: copy bandwidth {copies}; {gpus.L2_SHARE:.0%} of L2 kept between passes; "
        f"{gpus.LAUNCH_US:g} us a launch. tools/traffic/gpus.py says where they are from."
    )
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


def _columns(found: pd.DataFrame) -> pd.DataFrame:
    shown = found[["shapes", "setup", "dtype", "gpu"]].copy()
    for name, key, digits in (
        ("counted B/param", "counted_bytes", 2),
        ("memory B/param", "dram_bytes", 2),
        ("launches", "launches", 0),
        ("predicted ms", "ms", 3),
    ):
        shown[name] = found[key].round(digits)
    return shown


if __name__ == "__main__":
    main()
