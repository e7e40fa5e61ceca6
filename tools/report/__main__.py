"""Draws a result file: a page that is a single file, and as PNG the pictures of a README."""

import argparse
import base64
import io
import sys
from pathlib import Path
from statistics import geometric_mean
from typing import IO

from matplotlib.figure import Figure
from pandas.api.types import is_numeric_dtype

from bench import tables
from bench.pages import render
from bench.results import Results, load, write
from bench.setups import OURS
from bench.shapes import LARGE, MANY_SMALL
from tools.report import bars, lines, style

PICTURES = {
    "roofline": ("Share of the memory bandwidth that a step uses", lines.roofline),
    "speedups": ("Speed against the optimizers in use", bars.speedups),
    "memory": ("Bytes per parameter", bars.memory),
    "scaling": ("Cost by number of tensors and of parameters", lines.scaling),
}
"""Every picture's function and title, by the name of its file."""

README_PICTURES = ("roofline", "speedups", "memory")


def draw_all(results: Results, dark: bool = False) -> dict[str, Figure]:
    """Return the pictures for which something was measured."""
    with style.sheet(dark):
        drawn = {name: draw(results) for name, (_, draw) in PICTURES.items()}
    return {name: figure for name, figure in drawn.items() if figure}


def save(figure: Figure, file: Path | IO[bytes], dark: bool = False, kind: str = "png") -> None:
    with style.sheet(dark):
        figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})


def _uri(figure: Figure, dark: bool) -> str:
    file = io.BytesIO()
    save(figure, file, dark, "svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def page(results: Results) -> str:
    """Return the HTML page; it has each picture twice, for light and for dark screens."""
    light, dark = (
        {name: _uri(figure, dark) for name, figure in draw_all(results, dark).items()}
        for dark in (False, True)
    )
    return render(
        Path(__file__).with_name("page.html.jinja"),
        machine=results.machine,
        copy=results.copy,
        cards=summary(results),
        pictures=[(name, light[name], dark[name], PICTURES[name][0]) for name in light],
        tables=tables.tables(results),
        figure=tables.figure,
        is_numeric=is_numeric_dtype,
    )


def summary(results: Results) -> list[tuple[str, str]]:
    """Return the few figures that sum up the others, each with its caption."""
    cards: list[tuple[str, str]] = []
    rows, ratios = results.frame("rows"), results.frame("ratios")
    large = rows[(rows.source == OURS) & (rows.op == "adamw") & (rows.parameters >= 1e8)]
    if len(shares := large.copy_percent.dropna()):
        what = "of a copy's bandwidth: AdamW, 100M parameters and more, median"
        cards.append((f"{shares.median():.0f} %", what))
    for text, baseline, lists in (
        ("torch AdamW fused, large models", "torch AdamW fused", LARGE),
        ("torch AdamW fused, many small tensors", "torch AdamW fused", MANY_SMALL),
        ("transformers Adafactor", "transformers Adafactor", None),
        ("torch Adafactor", "torch Adafactor", None),
    ):
        found = ratios[(ratios.baseline == baseline) & (ratios.kind != "default")]
        found = found[found.shapes.isin(lists)] if lists else found
        if len(found):
            pairs = "one pair" if len(found) == 1 else f"geometric mean of {len(found)} pairs"
            cards.append((f"{geometric_mean(found.ratio):.3g}×", f"as fast as {text}: {pairs}"))
    return cards


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tools.report", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", metavar="PICTURE", help="as PNG, and no page")
    parser.add_argument("--dark", action="store_true", help="PNG for dark pages")
    options = parser.parse_args(arguments)
    results = load(options.results)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in draw_all(results, options.dark).items():
        if name in (options.only or README_PICTURES):
            save(figure, options.out / f"{name}.png", options.dark)
            print(options.out / f"{name}.png")
    if not options.only:
        write(options.out / "report.html", page(results))
        print(options.out / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
