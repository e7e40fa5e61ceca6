"""Pictures made of bars: speed against each baseline, and bytes per parameter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bench import style
from bench.results import Memory, Ratio, Results
from bench.setups import OURS, SETUPS
from bench.style import Theme

ROW = 0.27  # inches that a bar of memory takes
HEAD = 0.42  # inches that the name of a panel takes
BAR, GAP = 0.21, 0.24  # inches that a bar of speed takes, and what is left between groups
MOST_GROUPS, MOST_LISTS = 14, 3
MOST_MEMORY = 9  # bars of this package, and of the others, in a panel
KIND_NOTES = {"equal bytes": "equal bytes", "equal semantics": "the same update"}


# --- speed ----------------------------------------------------------------------------------------


def speedups(results: Results, theme: Theme) -> Figure | None:
    """Draw how many times as fast as each baseline this package is, a bar per list of shapes."""
    lists = _lists(results.ratios)
    groups = _groups([ratio for ratio in results.ratios if ratio.shapes in lists])
    if not groups:
        return None
    body = sum(len(group) * BAR + GAP for group in groups)
    figure = style.new_figure(9.6, body + 2.0, theme)
    height = figure.get_figheight()
    axes = figure.add_axes((0.37, 0.66 / height, 0.58, body / height))
    style.frame(axes, theme, "", "x")
    axes.spines["left"].set_visible(False)
    _speed_axis(axes, [ratio for group in groups for ratio in group], theme)
    colors = dict(zip(lists, style.LINES, strict=False))
    top = GAP / 2
    for group in groups:
        _speed_group(axes, top, group, colors, theme)
        top += len(group) * BAR + GAP
    axes.set_ylim(body, 0)
    axes.set_yticks([])
    _lists_legend(figure, colors, results.ratios, theme)
    what = "Time of the other optimizer's step over ours: median of pairs, with quartiles"
    goals = any(ratio.goal for group in groups for ratio in group)
    what += "; a diamond marks a goal." if goals else "."
    style.titles(figure, theme, "Times as fast as the optimizers in use", what)
    style.footer(figure, theme, results.machine)
    return figure


def _lists(ratios: Sequence[Ratio]) -> list[str]:
    """Return the lists of shapes that most pairs were measured on, the largest first."""
    count = Counter(ratio.shapes for ratio in ratios)
    goals = Counter(ratio.shapes for ratio in ratios if ratio.goal)
    sizes = {ratio.shapes: ratio.parameters for ratio in ratios}
    best = sorted(count, key=lambda name: (-goals[name], -count[name], name))[:MOST_LISTS]
    return sorted(best, key=lambda name: -sizes[name])


def _groups(ratios: Sequence[Ratio]) -> list[list[Ratio]]:
    """Return the ratios of one pair for each baseline; few enough to read, by source."""
    pairs: dict[tuple[str, str, str, str], list[Ratio]] = {}
    for r in ratios:
        pairs.setdefault((r.baseline, r.ours, r.dtype, r.kind), []).append(r)
    best: dict[tuple[str, str], list[Ratio]] = {}

    def worth(group: list[Ratio]) -> tuple[int, ...]:
        return sum(r.goal is not None for r in group), group[0].kind != "default", len(group)

    for (baseline, _, dtype, _), group in pairs.items():
        key = (baseline, dtype)
        if key not in best or worth(group) > worth(best[key]):
            best[key] = sorted(group, key=lambda r: -r.parameters)
    ranked = sorted(best.values(), key=lambda group: tuple(-w for w in worth(group)))
    firsts = {_source(group): group for group in reversed(ranked)}  # no package is left out
    others = [group for group in ranked if firsts[_source(group)] is not group]
    kept = [*firsts.values(), *others][: max(MOST_GROUPS, len(firsts))]
    order = list(style.SOURCES)

    def place(group: list[Ratio]) -> tuple[int, bool, str, bool]:
        baseline, source = group[0].baseline, _source(group)
        known = order.index(source) if source in order else len(order)
        return known, "Adafactor" in baseline, baseline, group[0].dtype != "fp32"

    return sorted(kept, key=place)


def _source(group: Sequence[Ratio]) -> str:
    baseline = group[0].baseline
    return SETUPS[baseline].source if baseline in SETUPS else baseline


def _speed_axis(axes: Axes, ratios: Sequence[Ratio], theme: Theme) -> None:
    values = [v for r in ratios for v in (r.ratio, *r.ratio_quartiles, r.goal or 1.0) if v > 0]
    low, high = min([*values, 0.8]) / 1.3, max([*values, 1.25]) * 1.6
    steps = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
    style.log_x(axes, [s for s in steps if low <= s <= high], "×")
    axes.set_xlim(low, high)
    axes.axvline(1, color=theme.muted, lw=1.2, zorder=2)


def _speed_group(
    axes: Axes, top: float, group: Sequence[Ratio], colors: dict[str, str], theme: Theme
) -> None:
    """Draw the bars of one pair from ``top`` downwards, in inches."""
    first = group[0]
    note = KIND_NOTES.get(first.kind)
    names = (f"{first.ours} {first.dtype}" + (f", {note}" if note else ""), first.baseline)
    middle = top + len(group) * BAR / 2
    for text, at, size, color, weight in (
        (names[1], middle - 0.085, 9.6, theme.ink, "bold"),
        (names[0], middle + 0.105, 8.4, theme.muted, "normal"),
    ):
        axes.text(
            -0.02, at, text, size=size, color=color, weight=weight, ha="right", va="center",
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
    for number, ratio in enumerate(group):
        _speed_bar(axes, top + (number + 0.5) * BAR, ratio, colors[ratio.shapes], theme)


def _speed_bar(axes: Axes, y: float, ratio: Ratio, color: str, theme: Theme) -> None:
    axes.barh(y, ratio.ratio - 1, left=1, height=0.78 * BAR, color=color, zorder=3, lw=0)
    low, high = ratio.ratio_quartiles
    axes.plot((low, high), (y, y), color=theme.ink, lw=1.1, zorder=4, solid_capstyle="butt")
    beyond = max(ratio.ratio, high, 1.0)
    text = f"{ratio.ratio:.3g}×" if ratio.ratio >= 1 else f"{ratio.ratio:.2f}×"
    if ratio.goal:
        diamond = {"marker": "D", "ms": 4.5, "mfc": theme.paper, "mec": theme.ink, "mew": 1.0}
        axes.plot(ratio.goal, y, zorder=5, **diamond)
        if beyond / 1.1 <= ratio.goal <= 1.5 * beyond:  # the label would hide it
            beyond = max(beyond, ratio.goal * 1.02)
    axes.annotate(
        text, (beyond, y), (6, 0),
        textcoords="offset points", va="center", size=8.6, color=theme.ink, zorder=6,
    )  # fmt: skip


def _lists_legend(
    figure: Figure, colors: dict[str, str], ratios: Sequence[Ratio], theme: Theme
) -> None:
    sizes = {ratio.shapes: ratio.parameters for ratio in ratios}
    height = figure.get_figheight()
    figure.legend(
        handles=[
            Patch(color=color, lw=0, label=f"{name} ({style.si(sizes[name])} parameters)")
            for name, color in colors.items()
        ],
        loc="upper left", bbox_to_anchor=(0.18 / 9.6, 1 - 0.78 / height), frameon=False,
        ncols=MOST_LISTS, fontsize=9.2, labelcolor=theme.ink, handlelength=1.1, borderaxespad=0.2,
        columnspacing=1.6, handletextpad=0.5,
    )  # fmt: skip


# --- memory ---------------------------------------------------------------------------------------


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
        axes.tick_params(axis="x", labelbottom=False)
        top -= size
    axes.tick_params(axis="x", labelbottom=True)
    axes.set_xlabel("bytes per parameter", color=theme.muted, size=9.5)
    what = "The parameter (pale) and the optimizer's state (full colour); gradients not counted."
    style.titles(figure, theme, "Bytes per parameter", what)
    style.footer(figure, theme, results.machine)
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
    """Return one bar for each source, kind and size, the plainest name's; the smallest first."""
    kept: dict[tuple[str, bool, float], _Bar] = {}
    for bar in sorted(bars, key=lambda bar: (len(bar.name), bar.name)):
        kept.setdefault((bar.source, "Adafactor" in bar.name, round(bar.total, 1)), bar)
    ours = [bar for bar in kept.values() if bar.source == OURS][:MOST_MEMORY]
    others = [bar for bar in kept.values() if bar.source != OURS][:MOST_MEMORY]
    return sorted([*ours, *others], key=lambda bar: (round(bar.total, 2), bar.source != OURS))


def _memory_bars(axes: Axes, bars: Sequence[_Bar], theme: Theme) -> None:
    for y, bar in enumerate(bars):
        color = style.color_of(bar.source)
        axes.barh(y, bar.parameter, height=0.68, color=color, alpha=0.38, zorder=3, lw=0)
        axes.barh(y, bar.state, left=bar.parameter, height=0.68, color=color, zorder=3, lw=0)
        axes.annotate(
            f"{bar.total:.3g}", (bar.total, y), (5, 0),
            textcoords="offset points", va="center", size=9, color=theme.ink,
        )  # fmt: skip
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axes.tick_params(axis="y", labelsize=9.2)
    for label, bar in zip(axes.get_yticklabels(), bars, strict=True):
        ours = bar.source == OURS
        label.set_color(theme.ink if ours else theme.muted)
        label.set_weight("bold" if ours else "normal")
