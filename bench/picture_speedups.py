"""The picture of speed against each baseline, a bar per list of shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bench import style
from bench.results import Ratio, Results
from bench.setups import SETUPS
from bench.style import Theme

BAR, GAP = 0.21, 0.24  # inches that a bar takes, and what is left between groups
MOST_GROUPS, MOST_LISTS = 14, 3
KIND_NOTES = {"equal bytes": "equal bytes", "equal semantics": "the same update"}


def speedups(results: Results, theme: Theme) -> Figure | None:
    """Draw how many times as fast as each baseline this package is, a bar per list of shapes."""
    lists = _lists(results.ratios)
    groups = _groups([ratio for ratio in results.ratios if ratio.shapes in lists])
    if not groups:
        return None
    body = sum(len(group) * BAR + GAP for group in groups)
    figure = style.new_figure(9.6, body + 2.2, theme)
    height = figure.get_figheight()
    axes = figure.add_axes((0.37, 0.86 / height, 0.58, body / height))
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
    what = "Time of the other optimizer's step over ours, with quartiles over the pairs"
    goals = any(ratio.goal for group in groups for ratio in group)
    what += "; a diamond marks a goal." if goals else "."
    style.titles(figure, theme, "Times as fast as the optimizers in use", what)
    style.footer(figure, theme, style.machine_line(results.machine))
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
    style.log_x(axes, style.log_ticks(low, high, most=10), "×")
    axes.set_xlim(low, high)
    axes.axvline(1, color=theme.muted, lw=1.2, zorder=2)
    axes.set_xlabel("times as fast; left of 1× slower", color=theme.muted, size=9.5)


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
    if ratio.goal:
        diamond = {"marker": "D", "ms": 4.5, "mfc": theme.paper, "mec": theme.ink, "mew": 1.0}
        axes.plot(ratio.goal, y, zorder=5, **diamond)
        if beyond / 1.1 <= ratio.goal <= 1.5 * beyond:  # the label would hide it
            beyond = max(beyond, ratio.goal * 1.02)
    axes.annotate(
        times(ratio.ratio), (beyond, y), (6, 0),
        textcoords="offset points", va="center", size=8.6, color=theme.ink, zorder=6,
    )  # fmt: skip


def times(ratio: float) -> str:
    """Return a ratio as 12.3×, 1.00× or 0.016×."""
    digits = 1 if ratio >= 9.995 else 2 if ratio >= 0.0995 else 3
    return f"{ratio:.{digits}f}×"


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
