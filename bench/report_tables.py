"""The tables of the report, as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from bench import style
from bench.results import Ratio, Results


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], numbers: int) -> str:
    """Return a table whose last ``numbers`` columns are numbers; cells are escaped here.

    Columns in which nothing is known are left out.
    """
    if not rows:
        return ""
    words = len(head) - numbers
    shown = [i for i in range(len(head)) if any(row[i] is not None for row in rows)]
    tags = [' class="n"' if i >= words else "" for i in range(len(head))]
    top = "".join(f"<th{tags[i]}>{escape(head[i])}</th>" for i in shown)
    lines = [
        "<tr>" + "".join(f"<td{tags[i]}>{_cell(row[i])}</td>" for i in shown) + "</tr>"
        for row in rows
    ]
    body = "\n".join(lines)
    inner = f"<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    kind = "wide" if numbers else "text"
    return f'<div class="{kind}"><table>\n{inner}\n</table></div>'


class Markup(str):
    """Text that is HTML already."""


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return value if isinstance(value, Markup) else escape(str(value))


def _pill(kind: str, text: str) -> Markup:
    return Markup(f'<span class="pill {kind}">{escape(text)}</span>')


def checks(results: Results) -> str:
    """Return the goals and floors, with the verdicts; the worst first."""
    lines = []
    for check in sorted(results.checks, key=lambda c: (c.above_floor, c.met)):
        pill = _pill("good", "met") if check.met else _pill("fair", "above the floor")
        pill = pill if check.above_floor else _pill("bad", "below the floor")
        lines.append((check.name, check.unit, pill, check.value, check.goal, check.floor))
    return table(("figure", "unit", "verdict", "measured", "goal", "floor"), lines, 3)


def ratios(measured: Sequence[Ratio]) -> str:
    """Return all comparisons."""
    lines = []
    for r in measured:
        low, high = r.ratio_quartiles
        middle = f"{r.ratio:.2f}×"
        ratio = Markup(f"<b>{middle}</b> <small>{low:.2f} to {high:.2f}</small>")
        what = (r.ours, r.baseline, r.shapes, r.dtype, r.kind)
        times = (r.baseline_ms, r.ours_ms, ratio, r.host_ratio)
        lines.append((*what, style.si(r.parameters), *times))
    head = ("ours", "instead of", "shapes", "dtype", "compared", "parameters")
    return table((*head, "before, ms", "after, ms", "ratio", "host time, of theirs"), lines, 5)


def rows(results: Results) -> str:
    """Return the steps that were timed."""
    lines = [
        (r.optimizer, r.backend or r.source, r.shapes, r.dtype, style.si(r.tensors))
        + (style.si(r.parameters), r.ms, r.host_us, r.launches, r.gb_per_s, r.copy_percent)
        for r in results.rows
    ]
    head = ("optimizer", "runs on", "shapes", "dtype", "tensors", "parameters", "ms", "host, µs")
    return table((*head, "launches", "GB/s", "% of a copy"), lines, 7)


def memory(results: Results) -> str:
    """Return the bytes that optimizers keep and take."""
    lines = [
        (m.optimizer, m.source, m.shapes, m.dtype, m.state_bytes_per_parameter)
        + (m.bytes_per_parameter, None if m.transient_bytes is None else m.transient_bytes / 2**20)
        for m in results.memory
    ]
    head = ("optimizer", "package", "shapes", "dtype", "state, bytes per parameter")
    return table((*head, "with the parameter", "transient, MiB"), lines, 3)


def missing(results: Results) -> str:
    """Return what was not measured, and why."""
    return table(("what", "why"), [(m.what, m.why) for m in results.missing], 0)
