"""Pictures made of lines: bandwidth, and cost by size and count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from bench import style
from bench.goals import GOALS
from bench.results import Results, Row
from bench.setups import BEST_KNOWN, OURS
from bench.style import Theme
from bench.sweep_shapes import FIXED_SIZE, FIXED_TENSORS, kind_of

MOST_LINES = 7


@dataclass(frozen=True)
class Series:
    """One optimizer's points in the order of x."""

    name: str
    source: str
    points: tuple[tuple[float, float], ...]


def series_of(
    rows: Sequence[Row], x: Callable[[Row], float], y: Callable[[Row], float | None]
) -> list[Series]:
    """Return a series per optimizer and dtype, this package's first, the ones best known first."""
    found: dict[tuple[str, str, str], dict[float, float]] = {}
    for row in rows:
        value = y(row)
        if value is not None:
            found.setdefault((row.optimizer, row.dtype, row.source), {})[x(row)] = value

    def order(item: tuple[tuple[str, str, str], dict[float, float]]) -> tuple[Any, ...]:
        (name, dtype, source), points = item
        known = BEST_KNOWN.index(name) if name in BEST_KNOWN else len(BEST_KNOWN)
        return known, -len(points), name, dtype, source

    return [
        Series(f"{name} {dtype}", source, tuple(sorted(points.items())))
        for (name, dtype, source), points in sorted(found.items(), key=order)
    ]


def chosen(series: Sequence[Series], most: int = MOST_LINES) -> list[Series]:
    """Return as many as can be told apart: half of them at least this package's, if there are."""
    ours = [s for s in series if s.source == OURS]
    others = [s for s in series if s.source != "fused_optim"]
    kept = ours[: max(most - len(others), (most + 1) // 2)]
    return [*kept, *others[: most - len(kept)]]


def draw_series(axes: Axes, series: Sequence[Series], theme: Theme, gap: float) -> None:
    """Draw lines with their names at their ends. Others' lines are dashed."""
    ends = []
    for number, each in enumerate(series):
        color = style.LINES[number % len(style.LINES)]
        ours = each.source == OURS
        xs, ys = zip(*each.points, strict=True)
        axes.plot(
            xs, ys, color=color, lw=2.0 if ours else 1.5, ls="-" if ours else (0, (4, 2)),
            marker=style.MARKERS[number % len(style.MARKERS)], ms=5,
            mec=theme.paper, mew=0.8, zorder=4 if ours else 3,
        )  # fmt: skip
        ends.append((xs[-1], ys[-1], each.name, color))
    style.label_ends(axes, ends, gap)


def panels(count: int, height: float, theme: Theme) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels side by side, with room for names right of each."""
    figure = style.new_figure(12.2 if count == 2 else 8.6, height, theme)
    bottom, tall = 0.98 / height, (height - 2.22) / height
    boxes = [(0.06, bottom, 0.25, tall), (0.555, bottom, 0.25, tall)]
    if count == 1:
        boxes = [(0.09, bottom, 0.58, tall)]
    return figure, [figure.add_axes(box) for box in boxes]


# --- bandwidth ------------------------------------------------------------------------------------


def roofline(results: Results, theme: Theme) -> Figure | None:
    """Draw which share of a copy's bandwidth a step reaches, by the size of the model."""
    measured = [row for row in results.rows if row.copy_percent is not None]
    # Without a row of ours, as on a CPU where plain PyTorch steps, there is nothing to compare.
    ours = {row.op for row in measured if row.source == OURS}
    ops = [op for op in ("adamw", "adafactor") if op in ours]
    if not ops:
        return None
    figure, axes_list = panels(len(ops), 5.3, theme)
    for axes, op in zip(axes_list, ops, strict=True):
        rows = [row for row in measured if row.op == op]
        _roofline_panel(axes, rows, op, theme)
    what = "Bytes that a step has to move over its time, in percent of a copy within the device"
    what += f" ({results.copy.gb_per_s:,.0f} GB/s)." if results.copy else "."
    style.titles(figure, theme, "Share of the memory bandwidth that a step uses", what)
    style.footer(figure, theme, style.machine_line(results.machine))
    return figure


def _roofline_panel(axes: Axes, rows: Sequence[Row], op: str, theme: Theme) -> None:
    style.frame(axes, theme, {"adamw": "AdamW", "adafactor": "Adafactor"}[op], "y")
    # Lists of one size each if there are such; models differ in more than their size.
    swept = [row for row in rows if kind_of(row.shapes) == FIXED_TENSORS]
    series = chosen(series_of(swept or rows, attrgetter("parameters"), attrgetter("copy_percent")))
    xs = [x for s in series for x, _ in s.points]
    style.log_x(axes, style.log_ticks(min(xs), max(xs)))
    axes.set_xlim(min(xs) / 1.5, max(xs) * 1.5)
    axes.set_ylim(0, max(108.0, 1.05 * max(y for s in series for _, y in s.points)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0f} %"))
    axes.set_xlabel("parameters", color=theme.muted, size=9.5)
    goal = GOALS[f"{op} bandwidth"].goal
    for y, text, up, line in ((100, "a copy", 1, "-"), (goal, f"goal, {goal:g} %", -1, ":")):
        axes.axhline(y, color=theme.muted, lw=1, ls=line)
        axes.annotate(
            text, (min(xs) / 1.4, y), (0, 3 * up), textcoords="offset points",
            size=8.2, color=theme.muted, va="bottom" if up > 0 else "top",
        )  # fmt: skip
    draw_series(axes, series, theme, 0.065)


# --- cost by size and by count --------------------------------------------------------------------


def scaling(results: Results, theme: Theme) -> Figure | None:
    """Draw the time of a step by number of tensors and by number of parameters."""
    found = {kind_of(row.shapes) for row in results.rows}
    kinds = [kind for kind in (FIXED_SIZE, FIXED_TENSORS) if kind in found]
    if not kinds:
        return None
    figure, axes_list = panels(len(kinds), 5.3, theme)
    for axes, kind in zip(axes_list, kinds, strict=True):
        rows = [row for row in results.rows if kind_of(row.shapes) == kind]
        _scaling_panel(axes, rows, kind, theme)
    what = "Median time of a step; both axes are logarithmic. Dashed: other packages."
    style.titles(figure, theme, "Cost by number of tensors and of parameters", what)
    style.footer(figure, theme, style.machine_line(results.machine))
    return figure


def _scaling_panel(axes: Axes, rows: Sequence[Row], kind: str, theme: Theme) -> None:
    by_tensors = kind == FIXED_SIZE
    sizes = sorted({row.parameters if by_tensors else row.tensors for row in rows})
    fixed = style.si(sizes[-1])
    title = (
        f"{fixed} parameters, split into more and more tensors"
        if by_tensors
        else f"{fixed} tensors, larger and larger"
    )
    style.frame(axes, theme, title, "y")
    x = attrgetter("tensors" if by_tensors else "parameters")
    series = chosen(series_of(rows, x, attrgetter("ms")))
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points]
    style.log_x(axes, style.log_ticks(min(xs), max(xs)))
    axes.set_xlim(min(xs) / 1.5, max(xs) * 1.5)
    axes.set_yscale("log")
    axes.set_ylim(min(ys) / 1.6, max(ys) * 1.6)
    axes.set_yticks(style.log_ticks(min(ys) / 1.6, max(ys) * 1.6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _milliseconds(y)))
    axes.set_xlabel("tensors" if by_tensors else "parameters", color=theme.muted, size=9.5)
    draw_series(axes, series, theme, 0.065)


def _milliseconds(ms: float) -> str:
    if ms >= 1000:
        return f"{ms / 1000:g} s"
    return f"{ms:g} ms" if ms >= 1 else f"{1000 * ms:g} µs"
