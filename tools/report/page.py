"""One page of a result file, in one file that loads nothing: page.html.jinja, filled in."""

import base64
import io
import math
from pathlib import Path
from typing import Any

import jinja2
from pandas.api.types import is_numeric_dtype

from bench import tables
from bench.results import Results
from bench.setups import OURS
from bench.shapes import LARGE, MANY_SMALL
from tools.report import curves, pictures, style

Figures = tuple[dict[str, str], dict[str, str]]
"""Pictures by name as data URIs, for light and for dark screens."""


def page(results: Results, figures: Figures) -> str:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    made = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(figure=tables.figure)
    made.tests.update(numeric=is_numeric_dtype)
    titles = {"curves": curves.TITLE, **{n: what for n, (what, _) in pictures.PICTURES.items()}}
    return made.get_template("page.html.jinja").render(
        machine=results.machine,
        copy=results.copy,
        cards=summary(results),
        pictures=[
            (name, light, figures[1].get(name, light), titles[name])
            for name, light in figures[0].items()
        ],
        tables=tables.tables(results),
    )


def summary(results: Results) -> list[tuple[str, str]]:
    """Return the few figures that sum up the rest, each with what it is."""
    cards: list[tuple[str, str]] = []
    rows, ratios = tables.frame(results.rows), tables.frame(results.ratios)
    if len(rows):
        large = rows[(rows.source == OURS) & (rows.op == "adamw") & (rows.parameters >= 1e8)]
        shares = large.copy_percent.dropna()
        if len(shares):
            what = "of a copy's bandwidth: AdamW, 100M parameters and more, median"
            cards.append((f"{shares.median():.0f} %", what))
    for text, baseline, lists in (
        ("torch AdamW fused, large models", "torch AdamW fused", LARGE),
        ("torch AdamW fused, many small tensors", "torch AdamW fused", MANY_SMALL),
        ("transformers Adafactor", "transformers Adafactor", None),
        ("torch Adafactor", "torch Adafactor", None),
    ):
        if not len(ratios):
            continue
        found = ratios[(ratios.baseline == baseline) & (ratios.kind != "default")]
        found = found[found.shapes.isin(lists)] if lists else found
        if len(found):
            mean = math.exp(found.ratio.map(math.log).mean())
            pairs = "one pair" if len(found) == 1 else f"geometric mean of {len(found)} pairs"
            cards.append((f"{mean:.3g}×", f"as fast as {text}: {pairs}"))
    return cards


def drawn(results: Results, losses: dict[str, Any] | None) -> Figures:
    """Return the pictures as data URIs, for light and for dark screens."""

    def uri(figure: pictures.Figure, theme: style.Theme) -> str:
        file = io.BytesIO()
        pictures.save(figure, file, theme, "svg")
        return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"

    light, dark = (
        {name: uri(f, theme) for name, f in pictures.draw_all(results, losses, theme).items()}
        for theme in (style.LIGHT, style.DARK)
    )
    return light, dark
