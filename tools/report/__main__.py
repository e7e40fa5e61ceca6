"""Draws a result file: one page in one file, and the pictures that a README shows as PNG."""

import argparse
import json
import sys
from pathlib import Path

from bench.results import load, write
from tools.report import page, pictures, style

README_PICTURES = ("roofline", "speedups", "memory")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tools.report", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--curves", type=Path, help="what `python -m bench.precision` wrote")
    parser.add_argument("--only", nargs="+", metavar="PICTURE", help="as PNG, and no page")
    parser.add_argument("--dark", action="store_true", help="PNG for dark pages")
    options = parser.parse_args(arguments)
    results = load(options.results)
    curves = json.loads(options.curves.read_text()) if options.curves else None
    theme = style.DARK if options.dark else style.LIGHT
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures.draw_all(results, curves, theme).items():
        if name in (options.only or README_PICTURES):
            pictures.save(figure, options.out / f"{name}.png", theme)
            print(options.out / f"{name}.png")
    if not options.only:
        made = page.page(results, page.drawn(results, curves))
        write(options.out / "report.html", made)
        print(options.out / "report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
