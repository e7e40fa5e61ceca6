"""One page of a result file, in one file: ``python -m bench.report_html results.json FOLDER``.

Pictures are in the page as SVG, for light and for dark screens; nothing is loaded from elsewhere.
The pictures that a README shows are written beside it as PNG.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from bench import picture_curves, pictures, report_tables, style
from bench.gpu_check_record import write
from bench.report_style import CSS
from bench.results import Results, load
from bench.setups import OURS
from bench.shapes import LARGE, MANY_SMALL

README_PICTURES = ("roofline", "speedups", "memory")
CAPTIONS = {
    "roofline": "An optimizer's step is bound by memory: it can't be faster than a copy of as many "
    "bytes. Small models are bound by launches instead.",
    "speedups": "Both optimizers step in turns on the same machine, in the same process.",
    "memory": "Measured from the optimizers' state after a step, each in a process of its own.",
    "scaling": "Flat on the left is the cost of launching; the slope on the right is memory.",
    "curves": "The same model and data. Runs in bfloat16 have the first float32 run's weights and "
    "batches; only how their parameters are kept differs.",
}
Figures = tuple[dict[str, str], dict[str, str]]
"""Pictures by name as data URIs, for light and for dark screens."""


# --- the page -------------------------------------------------------------------------------------


def page(results: Results, figures: Figures) -> str:
    """Return the page."""
    where = results.machine.gpu or results.machine.cpu
    body = "\n".join(part for part in _sections(results, figures) if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>fused_optim on {escape(where)}</title>\n<style>\n{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _sections(results: Results, figures: Figures) -> Iterator[str]:
    yield _header(results)
    yield _cards(results)
    for name, uri in figures[0].items():
        yield _picture(name, uri, figures[1].get(name, uri))
    yield _section("Goals and floors", report_tables.checks(results))
    yield _section("All comparisons", report_tables.ratios(results.ratios))
    yield _section("All steps", report_tables.rows(results), closed=True)
    yield _section("Memory", report_tables.memory(results), closed=True)
    yield _section("Not measured", report_tables.missing(results), closed=True)


def _header(results: Results) -> str:
    machine = results.machine
    where = machine.gpu or machine.cpu
    facts = {
        "torch": machine.torch,
        "Triton": machine.triton,
        "CUDA": machine.cuda,
        "driver": machine.driver,
        "Python": machine.python,
        "fused_optim": f"{machine.fused_optim}, commit {machine.commit}",
        "memory": machine.memory_bytes and f"{machine.memory_bytes / 2**30:.0f} GiB",
        "copy": results.copy and f"{results.copy.gb_per_s:,.0f} GB/s read and written",
        "date": machine.date,
    }
    known = {name: escape(str(fact)) for name, fact in facts.items() if fact}
    items = "".join(f"<div><dt>{k}</dt> <dd>{v}</dd></div>" for k, v in known.items())
    return (
        f"<header>\n<h1>fused_optim <span>on {escape(where)}</span></h1>\n"
        f"<p>AdamW and Adafactor for PyTorch, against the optimizers they replace.</p>\n"
        f"<dl>{items}</dl>\n</header>"
    )


def _picture(name: str, light: str, dark: str) -> str:
    title = pictures.PICTURES[name][0] if name in pictures.PICTURES else picture_curves.TITLE
    return (
        f'<figure id="{name}">\n<picture>\n'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'<img src="{light}" alt="{escape(title)}">\n</picture>\n'
        f"<figcaption>{escape(CAPTIONS[name])}</figcaption>\n</figure>"
    )


def _section(title: str, content: str, closed: bool = False) -> str:
    if not content:
        return ""
    if closed:
        return f"<details>\n<summary>{title}</summary>\n{content}\n</details>"
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>"


# --- figures that sum up --------------------------------------------------------------------------


def _cards(results: Results) -> str:
    cards = "".join(
        f"<li><strong>{escape(value)}</strong><span>{escape(what)}</span></li>"
        for value, what in summary(results)
    )
    return f'<ul class="cards">{cards}</ul>' if cards else ""


def summary(results: Results) -> list[tuple[str, str]]:
    """Return the few figures that sum up the rest, each with what it is."""
    cards: list[tuple[str, str]] = []
    shares = [
        row.copy_percent
        for row in results.rows
        if row.source == OURS and row.op == "adamw" and row.copy_percent is not None
        if row.parameters >= 100_000_000
    ]
    if shares:
        middle = sorted(shares)[len(shares) // 2]
        what = "of a copy's bandwidth: AdamW, 100M parameters and more, median"
        cards.append((f"{middle:.0f} %", what))
    for text, baseline, lists in (
        ("as fast as torch AdamW fused, large models", "torch AdamW fused", LARGE),
        ("as fast as torch AdamW fused, many small tensors", "torch AdamW fused", MANY_SMALL),
        ("as fast as transformers Adafactor", "transformers Adafactor", None),
        ("as fast as torch Adafactor", "torch Adafactor", None),
    ):
        found = [
            r.ratio
            for r in results.ratios
            if r.baseline == baseline and r.kind != "default" and (not lists or r.shapes in lists)
        ]
        if found:
            mean = math.exp(sum(map(math.log, found)) / len(found))
            pairs = "one pair" if len(found) == 1 else f"geometric mean of {len(found)} pairs"
            cards.append((f"{mean:.3g}×", f"{text}: {pairs}"))
    return cards


# --- files ----------------------------------------------------------------------------------------


def drawn(results: Results, curves: dict[str, Any] | None) -> Figures:
    """Return the pictures as data URIs, for light and for dark screens."""
    both = []
    for theme in (style.LIGHT, style.DARK):
        uris = {}
        for name, figure in pictures.draw_all(results, curves, theme).items():
            file = io.BytesIO()
            with style.context():
                color = figure.get_facecolor()
                figure.savefig(file, format="svg", facecolor=color, metadata={"Date": None})
            data = base64.b64encode(file.getvalue()).decode()
            uris[name] = f"data:image/svg+xml;base64,{data}"
        both.append(uris)
    return both[0], both[1]


def main(arguments: list[str] | None = None) -> int:
    """Write the page and the pictures into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.report_html")
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--curves",
        type=Path,
        help="what `python -m bench.precision` wrote",
    )
    options = parser.parse_args(arguments)
    results = load(options.results)
    curves = json.loads(options.curves.read_text()) if options.curves else None
    options.out.mkdir(parents=True, exist_ok=True)
    write(options.out / "report.html", page(results, drawn(results, curves)))
    for name, figure in pictures.draw_all(results, None, style.LIGHT).items():
        if name in README_PICTURES:
            pictures.save(figure, options.out / f"{name}.png")
    print(options.out / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
