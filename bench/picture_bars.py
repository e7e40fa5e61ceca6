"""Pictures made of bars: speed against each baseline, and bytes per parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import style
from bench.results import Memory, Ratio, Results
from bench.style import Theme

ROW = 0.27  # inches that a bar takes
HEAD = 0.42  # inches that the name of a group takes
MOST_PER_GROUP = 5
MOST_ROWS = 34
KIND_NOTES = {"equal bytes": "equal bytes", "equal semantics": "same update", "default": ""}


# --- speed ----------------------------------------------------------------------------------------


def speedups(results: Results, theme: Theme) -> Figure | None:
    """Draw how many times as fast as each baseline this package is, a group per baseline."""
    groups = _groups(results.ratios)
    if not groups:
        return None
    rows = sum(len(group) for group in groups.values())
    body = rows * ROW + len(groups) * HEAD
    figure = style.new_figure(9.6, body + 1.65, theme)
    height = figure.get_figheight()
    axes = figure.add_axes((0.40, 0.62 / height, 0.52, (body - 0.1) / height))
    style.frame(axes, theme, "", "x")
    _speed_axis(axes, [ratio for group in groups.values() for ratio in group], theme)
    y, ticks = 0.0, []
    for baseline, group in groups.items():
        y += HEAD / ROW
        axes.text(
            -0.74, y - 0.95, f"instead of {baseline}", size=10, weight="bold", color=theme.ink,
            va="center", transform=axes.get_yaxis_transform(),
        )  # fmt: skip
        for ratio in group:
            _speed_bar(axes, y, ratio, theme)
            ticks.append((y, _ratio_name(ratio)))
            y += 1
    axes.set_ylim(y - 0.3, 0)
    axes.set_yticks([t for t, _ in ticks], [name for _, name in ticks])
    axes.tick_params(axis="y", labelcolor=theme.ink, labelsize=9.2)
    what = "Time of the other optimizer's step over ours: median of pairs, with quartiles"
    goals = any(r.goal for g in groups.values() for r in g)
    what += "; a diamond marks the goal." if goals else "."
    style.titles(figure, theme, "Times as fast as the optimizers in use", what)
    style.footer(figure, theme, results.machine)
    return figure


def _groups(ratios: Sequence[Ratio]) -> dict[str, list[Ratio]]:
    """Return what is drawn by baseline; few enough to read, the rest is in the tables."""
    groups: dict[str, list[Ratio]] = {}
    for ratio in ratios:
        groups.setdefault(ratio.baseline, []).append(ratio)
    per_group = MOST_PER_GROUP
    while per_group > 1 and sum(min(len(g), per_group) for g in groups.values()) > MOST_ROWS:
        per_group -= 1
    return {name: _telling(group, per_group) for name, group in groups.items()}


def _telling(group: list[Ratio], count: int) -> list[Ratio]:
    """Return those with goals, then the largest models, in the order they were measured."""
    order = sorted(group, key=lambda r: (r.goal is None, -r.parameters))
    chosen = {id(ratio) for ratio in order[:count]}
    return [ratio for ratio in group if id(ratio) in chosen]


def _ratio_name(ratio: Ratio) -> str:
    note = KIND_NOTES.get(ratio.kind, ratio.kind)
    return f"{ratio.ours} {ratio.dtype}, {ratio.shapes}" + (f" ({note})" if note else "")


def _speed_axis(axes: Axes, ratios: Sequence[Ratio], theme: Theme) -> None:
    values = [v for r in ratios for v in (r.ratio, *r.ratio_quartiles, r.goal or 1.0) if v > 0]
    low, high = min([*values, 0.8]) / 1.25, max([*values, 1.25]) * 1.7
    steps = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
    style.log_x(axes, [s for s in steps if low <= s <= high], "×")
    axes.set_xlim(low, high)
    axes.axvline(1, color=theme.muted, lw=1.1, zorder=2)


def _speed_bar(axes: Axes, y: float, ratio: Ratio, theme: Theme) -> None:
    faster = ratio.ratio >= 1
    color = style.OURS if faster else style.SOURCES["torch"]
    axes.barh(y, ratio.ratio - 1, left=1, height=0.66, color=color, zorder=3)
    low, high = ratio.ratio_quartiles
    axes.plot((low, high), (y, y), color=theme.ink, lw=1.2, zorder=4, solid_capstyle="butt")
    if ratio.goal:
        axes.plot(
            ratio.goal, y, marker="D", ms=5, mfc=theme.paper, mec=theme.ink, mew=1.1, zorder=5
        )  # fmt: skip
    beyond = max(ratio.ratio, high, 1.0)
    goal_near = ratio.goal and 0.97 * beyond <= ratio.goal <= 1.45 * beyond
    at = ratio.goal if goal_near else beyond
    axes.annotate(
        f"{ratio.ratio:.3g}×" if ratio.ratio >= 1 else f"{ratio.ratio:.2f}×",
        (at, y), (7 if goal_near else 5, 0),
        textcoords="offset points", va="center", size=9, color=theme.ink, zorder=6,
    )  # fmt: skip


# --- memory ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bar:
    name: str
    source: str
    parameter: float
    state: float


def memory(results: Results, theme: Theme) -> Figure | None:
    """Draw the bytes that a parameter and its state take, a panel per dtype of the parameters."""
    panels = _memory_panels(results.memory)
    if not panels:
        return None
    body = sum(len(bars) * ROW + HEAD for bars in panels.values())
    figure = style.new_figure(9.6, body + 1.75, theme)
    height = figure.get_figheight()
    most = max(b.parameter + b.state for bars in panels.values() for b in bars)
    top = height - 0.95
    for dtype, bars in panels.items():
        top -= HEAD
        size = len(bars) * ROW
        box = (0.37, (top - size) / height, 0.55, size / height)
        axes = figure.add_axes(box)
        style.frame(axes, theme, "", "x")
        axes.text(
            -0.66, 1 + 0.17 / size, f"{dtype} parameters", size=10, weight="bold",
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
    for bars in panels.values():
        bars.sort(key=lambda bar: (round(bar.parameter + bar.state, 2), bar.source != "fused_optim"))
    return panels


def _memory_bars(axes: Axes, bars: Sequence[_Bar], theme: Theme) -> None:
    for y, bar in enumerate(bars):
        color = style.color_of(bar.source)
        axes.barh(y, bar.parameter, height=0.68, color=color, alpha=0.38, zorder=3, lw=0)
        axes.barh(y, bar.state, left=bar.parameter, height=0.68, color=color, zorder=3, lw=0)
        total = bar.parameter + bar.state
        axes.annotate(
            f"{total:.3g}", (total, y), (5, 0),
            textcoords="offset points", va="center", size=9, color=theme.ink,
        )  # fmt: skip
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axes.tick_params(axis="y", labelsize=9.2)
    for label, bar in zip(axes.get_yticklabels(), bars, strict=True):
        ours = bar.source == "fused_optim"
        label.set_color(theme.ink if ours else theme.muted)
        label.set_weight("bold" if ours else "normal")
