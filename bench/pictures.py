"""The pictures of a result file: ``python -m bench.pictures results.json --out FOLDER``.

Each function draws one picture of what was measured, or returns None where nothing fits it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench import picture_curves, picture_lines, picture_memory, picture_speedups, style
from bench.results import Results, load

Draw = Callable[[Results, style.Theme], Figure | None]

PICTURES: dict[str, tuple[str, Draw]] = {
    "roofline": ("Share of the memory bandwidth that a step uses", picture_lines.roofline),
    "speedups": ("Speed against the optimizers in use", picture_speedups.speedups),
    "memory": ("Bytes per parameter", picture_memory.memory),
    "scaling": ("Cost by number of tensors and of parameters", picture_lines.scaling),
}
"""Every picture by its file's name, with what it shows."""


def draw_all(
    results: Results, curves: dict[str, Any] | None, theme: style.Theme
) -> dict[str, Figure]:
    """Return the pictures that can be drawn.

    Args:
        results: what was measured.
        curves: losses by precision mode, as ``bench.precision`` keeps them, or None.
        theme: the colours.
    """
    drawn: dict[str, Figure | None] = {}
    with style.context():
        for name, (_, draw) in PICTURES.items():
            drawn[name] = draw(results, theme)
        if curves is not None:
            drawn["curves"] = picture_curves.curves(curves, theme)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save(figure: Figure, path: Path) -> None:
    """Write a picture in the format that the path's suffix names."""
    with style.context():
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, facecolor=figure.get_facecolor(), metadata=metadata)


def main(arguments: list[str] | None = None) -> int:
    """Draw the pictures of a result file into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.pictures")
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument(
        "--curves",
        type=Path,
        help="what `python -m bench.precision` wrote",
    )
    parser.add_argument("--only", nargs="+", help="names of pictures")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args(arguments)
    curves = json.loads(options.curves.read_text()) if options.curves else None
    theme = style.DARK if options.dark else style.LIGHT
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in draw_all(load(options.results), curves, theme).items():
        if not options.only or name in options.only:
            save(figure, options.out / f"{name}.png")
            print(options.out / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
