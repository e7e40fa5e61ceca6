"""The picture of speed against each baseline, a bar per list of shapes."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bench.results import Results
from bench.setups import SETUPS
from bench.tables import frame
from tools.report import style
from tools.report.style import Theme

BAR, GAP = 0.21, 0.24  # inches that a bar takes, and what is left between groups
MOST_GROUPS, MOST_LISTS = 14, 3
KIND_NOTES = {"equal bytes": ", equal bytes", "equal semantics": ", the same update"}
PAIR = ["baseline", "ours", "dtype", "kind"]


def speedups(results: Results, theme: Theme) -> Figure | None:
    """Draw how many times as fast as each baseline this package is, a bar per list of shapes."""
    if not results.ratios:
        return None
    ratios = frame(results.ratios)
    ratios["goal"] = ratios.goal.astype(float)
    lists = _lists(ratios)
    ratios = ratios[ratios.shapes.isin(lists.index)]
    pairs = _pairs(ratios)
    bars = pairs.merge(ratios, on=PAIR).sort_values(
        ["place", "parameters"], ascending=[True, False]
    )
    bars["y"] = BAR * np.arange(len(bars)) + GAP * bars.place + (GAP + BAR) / 2
    what = "Time of the other optimizer's step over ours, with quartiles over the pairs"
    what += "; a diamond marks a goal." if bars.goal.notna().any() else "."
    words = ("Times as fast as the optimizers in use", what, style.machine_line(results.machine))
    body = BAR * len(bars) + GAP * len(pairs)
    figure = style.new_figure(9.6, body + 0.95, theme, words)
    axes = figure.subplots()
    colors = dict(zip(lists.index, style.LINES, strict=False))
    _draw(axes, bars, bars.shapes.map(colors), theme)
    axes.set_ylim(body, 0)
    middles = bars.groupby("place").y.mean()
    names = pairs.baseline + "\n" + pairs.ours + " " + pairs.dtype
    axes.set_yticks(middles, names + pairs.kind.map(KIND_NOTES).fillna(""))
    handles = [
        Patch(color=colors[name], lw=0, label=f"{name} ({style.si(size)} parameters)")
        for name, size in lists.items()
    ]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=MOST_LISTS)
    return figure


def _lists(ratios: pd.DataFrame) -> pd.Series:
    """Return the sizes of the lists that most pairs were measured on, the largest first."""
    lists = ratios.groupby("shapes").agg(
        goals=("goal", "count"), count=("ratio", "size"), parameters=("parameters", "max")
    )
    best = lists.sort_values(["goals", "count"], ascending=False, kind="stable").head(MOST_LISTS)
    return best.parameters.sort_values(ascending=False)


def _pairs(ratios: pd.DataFrame) -> pd.DataFrame:
    """Return one pair for each baseline and dtype; few enough to read, by source."""
    pairs = ratios.groupby(PAIR, as_index=False, sort=False).agg(
        goals=("goal", "count"), count=("ratio", "size")
    )
    pairs["source"] = [SETUPS[name].source if name in SETUPS else name for name in pairs.baseline]
    pairs["alike"] = pairs.kind != "default"
    pairs = pairs.sort_values(["goals", "alike", "count"], ascending=False, kind="stable")
    best = pairs.drop_duplicates(["baseline", "dtype"])
    firsts = best.drop_duplicates("source")  # no package is left out
    kept = pd.concat([firsts, best.drop(firsts.index)]).head(max(MOST_GROUPS, len(firsts)))
    known = {source: index for index, source in enumerate(style.SOURCES)}
    kept["known"] = kept.source.map(known).fillna(len(known))
    kept["adafactor"] = kept.baseline.str.contains("Adafactor")
    kept["low"] = kept.dtype != "fp32"
    kept = kept.sort_values(["known", "adafactor", "baseline", "low"])
    return kept[PAIR].assign(place=range(len(kept))).reset_index(drop=True)


def _draw(axes: Axes, bars: pd.DataFrame, colors: pd.Series, theme: Theme) -> None:
    """Draw bars at their ``y``, in inches from the top."""
    lows, highs = np.array(bars.ratio_quartiles.tolist()).T
    axes.barh(bars.y, bars.ratio - 1, left=1, height=0.78 * BAR, color=colors, lw=0)
    axes.hlines(bars.y, lows, highs, color=theme.ink, lw=1.1, zorder=4)
    diamond = {"ms": 4.5, "mfc": theme.paper, "mec": theme.ink, "mew": 1.0, "zorder": 5}
    axes.plot(bars.goal, bars.y, "D", **diamond)
    beyond = np.maximum.reduce([bars.ratio, highs, np.ones(len(bars))])
    # The label would hide a goal that lies there.
    hidden = (beyond / 1.1 <= bars.goal) & (bars.goal <= 1.5 * beyond)
    beyond = np.where(hidden, np.fmax(beyond, 1.02 * bars.goal), beyond)
    for ratio, x, y in zip(bars.ratio, beyond, bars.y, strict=True):
        how = {"textcoords": "offset points", "va": "center", "size": 8.6}
        axes.annotate(times(ratio), (x, y), (6, 0), **how)
    low, high = min(0.8, bars.ratio.min(), lows.min()), max(1.25, beyond.max(), bars.goal.max())
    style.logarithmic(axes, "x", low / 1.3, high * 1.6, lambda x: f"{style.si(x)}×")
    style.only_grid(axes, "x")
    axes.spines["left"].set_visible(False)
    axes.axvline(1, color=theme.muted, lw=1.2)
    axes.set_xlabel("times as fast; left of 1× slower")


def times(ratio: float) -> str:
    """Return a ratio as 12.3×, 1.00× or 0.016×."""
    digits = 1 if ratio >= 9.995 else 2 if ratio >= 0.0995 else 3
    return f"{ratio:.{digits}f}×"
