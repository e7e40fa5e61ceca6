"""The picture of bytes per parameter, a bar per optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from bench import style
from bench.results import Memory, Results
from bench.setups import BEST_KNOWN, OURS
from bench.style import Theme

ROW = 0.27  # inches that a bar takes
HEAD = 0.42  # inches that the name of a panel takes
MOST_BARS = 9  # of this package, and of the others, in a panel


@dataclass(frozen=True)
class _Bar:
    name: str
    source: str
    parameter: float
    state: float

    @property
    def total(self) -> float:
        return self.parameter + self.state


def memory(results: Results, theme: Theme) -> Figure | None:
    """Draw the bytes that a parameter and its state take, a panel per dtype of the parameters."""
    panels = _memory_panels(results.memory)
    if not panels:
        return None
    body = sum(len(bars) * ROW + HEAD for bars in panels.values())
    figure = style.new_figure(9.6, body + 1.75, theme)
    height = figure.get_figheight()
    most = max(b.total for bars in panels.values() for b in bars)
    top = height - 0.95
    for dtype, bars in panels.items():
        top -= HEAD
        size = len(bars) * ROW
        box = (0.40, (top - size) / height, 0.55, size / height)
        axes = figure.add_axes(box)
        style.frame(axes, theme, "", "x")
        axes.text(
            -0.68, 1 + 0.17 / size, f"{dtype} parameters", size=10, weight="bold",
            color=theme.ink, transform=axes.transAxes, va="center",
        )  # fmt: skip
        _memory_bars(axes, bars, theme)
        axes.set_xlim(0, most * 1.14)
        axes.xaxis.set_major_locator(MultipleLocator(2))
        axes.tick_params(axis="x", labelbottom=False)
        top -= size
    axes.tick_params(axis="x", labelbottom=True)
    axes.set_xlabel("bytes per parameter", color=theme.muted, size=9.5)
    what = "Parameter (pale) and state (full colour), no gradient; one optimizer of each size."
    style.titles(figure, theme, "Bytes per parameter", what)
    style.footer(figure, theme, style.machine_line(results.machine))
    return figure


def _memory_panels(rows: Sequence[Memory]) -> dict[str, list[_Bar]]:
    """Return a bar per optimizer and dtype, of the list with most parameters, the least first."""
    largest: dict[tuple[str, str], Memory] = {}
    for row in rows:
        key = (row.dtype, row.optimizer)
        if key not in largest or row.parameters > largest[key].parameters:
            largest[key] = row
    panels: dict[str, list[_Bar]] = {}
    for (dtype, _), row in largest.items():
        state = row.state_bytes_per_parameter
        bar = _Bar(row.optimizer, row.source, row.bytes_per_parameter - state, state)
        panels.setdefault(dtype, []).append(bar)
    return {dtype: _distinct(bars) for dtype, bars in panels.items()}


def _distinct(bars: Sequence[_Bar]) -> list[_Bar]:
    """Return one bar for each source, kind and size, the best known; the smallest first."""

    def fame(bar: _Bar) -> tuple[int, int, str]:
        known = BEST_KNOWN.index(bar.name) if bar.name in BEST_KNOWN else len(BEST_KNOWN)
        return known, len(bar.name), bar.name

    kept: dict[tuple[str, bool, float], _Bar] = {}
    for bar in sorted(bars, key=fame):
        kept.setdefault((bar.source, "Adafactor" in bar.name, round(bar.total, 1)), bar)
    ours = [bar for bar in kept.values() if bar.source == OURS][:MOST_BARS]
    others = [bar for bar in kept.values() if bar.source != OURS][:MOST_BARS]
    return sorted([*ours, *others], key=lambda bar: (round(bar.total, 2), bar.source != OURS))


def _bytes(number: float) -> str:
    """Return bytes per parameter as 12 or 4.09."""
    return f"{number:.2f}".rstrip("0").rstrip(".")


def _memory_bars(axes: Axes, bars: Sequence[_Bar], theme: Theme) -> None:
    for y, bar in enumerate(bars):
        color = style.color_of(bar.source)
        axes.barh(y, bar.parameter, height=0.68, color=color, alpha=0.38, zorder=3, lw=0)
        axes.barh(y, bar.state, left=bar.parameter, height=0.68, color=color, zorder=3, lw=0)
        axes.annotate(
            _bytes(bar.total), (bar.total, y), (5, 0),
            textcoords="offset points", va="center", size=9, color=theme.ink,
        )  # fmt: skip
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axes.tick_params(axis="y", labelsize=9.2)
    for label, bar in zip(axes.get_yticklabels(), bars, strict=True):
        ours = bar.source == OURS
        label.set_color(theme.ink if ours else theme.muted)
        label.set_weight("bold" if ours else "normal")
