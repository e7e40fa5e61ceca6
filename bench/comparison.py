"""This run beside an earlier one: ``python -m bench --compare BASE``."""

from __future__ import annotations

from collections.abc import Sequence

from bench.display import Display, figure, header
from bench.results import Ratio, Results, Row


def show(display: Display, base: Results, now: Results) -> None:
    """Print what both measured, row by row; a ratio above 1 says that it became faster."""
    display.say(f"\ncompared with\n{header(base.machine)}")
    rows = [
        (*row.key, figure(old.ms), figure(row.ms), figure(old.ms / row.ms, 3))
        for row, old in matches(now.rows, base.rows)
    ]
    head = ("optimizer", "shapes", "dtype", "base ms", "ms", "base / now")
    display.table("steps against the base", head, rows)
    ratios = [
        (*r.key, figure(old.ratio, 3), figure(r.ratio, 3), figure(r.ratio / old.ratio, 3))
        for r, old in matches(now.ratios, base.ratios)
    ]
    head = ("ours", "baseline", "shapes", "dtype", "base ratio", "ratio", "now / base")
    display.table("ratios against the base", head, ratios)
    if not rows and not ratios:
        display.say("nothing that was measured now is in the base")


def matches(now: Sequence[Row | Ratio], base: Sequence[Row | Ratio]) -> list[tuple]:
    """Return what is in both, as pairs of now and then."""
    old = {item.key: item for item in base}
    return [(item, old[item.key]) for item in now if item.key in old]
