"""Pictures made of bars: speed against each baseline, and bytes per parameter."""

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MultipleLocator

from bench.results import Results
from bench.setups import BEST_KNOWN, OURS, SETUPS
from tools.report import style

BAR, GAP = 0.21, 0.24  # inches of a bar, and between groups of bars
MOST_GROUPS, MOST_LISTS = 14, 3
MOST_BARS = 9  # in a panel of memory: of this package, and of the others
KIND_NOTES = {"equal bytes": ", equal bytes", "equal semantics": ", the same update"}
PAIR = ["baseline", "ours", "dtype", "kind"]


def speedups(results: Results) -> Figure | None:
    """Draw how many times as fast as each baseline this package is, with a bar for each list."""
    if not results.ratios:
        return None
    ratios = results.frame("ratios").astype({"goal": float})
    counts = {"goals": ("goal", "count"), "count": ("ratio", "size")}
    lists = ratios.groupby("shapes").agg(**counts, parameters=("parameters", "max"))
    lists = lists.sort_values(["goals", "count"], ascending=False, kind="stable").head(MOST_LISTS)
    sizes = lists.parameters.sort_values(ascending=False)
    ratios = ratios[ratios.shapes.isin(sizes.index)]
    pairs = _pairs(ratios.groupby(PAIR, as_index=False, sort=False).agg(**counts))
    bars = pairs.merge(ratios, on=PAIR)
    bars = bars.sort_values(["place", "parameters"], ascending=[True, False])
    bars["y"] = BAR * np.arange(len(bars)) + GAP * bars.place + (GAP + BAR) / 2
    what = "Time of the other optimizer's step over ours, with quartiles over the pairs"
    what += "; a diamond marks a goal." if bars.goal.notna().any() else "."
    body = BAR * len(bars) + GAP * len(pairs)
    words = ("Times as fast as the optimizers in use", what)
    figure = style.new_figure(9.6, body + 0.95, words, results.machine)
    axes = figure.subplots()
    colors = dict(zip(sizes.index, style.LINES, strict=False))
    _draw_ratios(axes, bars, bars.shapes.map(colors))
    axes.set_ylim(body, 0)
    names = pairs.baseline + "\n" + pairs.ours + " " + pairs.dtype
    names += pairs.kind.map(KIND_NOTES).fillna("")
    axes.set_yticks(bars.groupby("place").y.mean(), names)
    handles = [
        Patch(color=colors[name], lw=0, label=f"{name} ({style.si(size)} parameters)")
        for name, size in sizes.items()
    ]
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=MOST_LISTS)
    return figure


def _pairs(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return one pair for each baseline and dtype, sorted by source and few enough to read."""
    pairs["source"] = [SETUPS[name].source if name in SETUPS else name for name in pairs.baseline]
    pairs["alike"] = pairs.kind != "default"
    pairs = pairs.sort_values(["goals", "alike", "count"], ascending=False, kind="stable")
    best = pairs.drop_duplicates(["baseline", "dtype"])
    firsts = best.drop_duplicates("source")  # no package is left out
    kept = pd.concat([firsts, best.drop(firsts.index)]).head(max(MOST_GROUPS, len(firsts)))
    kept["known"] = style.rank(kept.source, style.SOURCES)
    kept["adafactor"] = kept.baseline.str.contains("Adafactor")
    kept["low"] = kept.dtype != "fp32"
    kept = kept.sort_values(["known", "adafactor", "baseline", "low"])
    return kept[PAIR].assign(place=range(len(kept))).reset_index(drop=True)


def _draw_ratios(axes: Axes, bars: pd.DataFrame, colors: pd.Series) -> None:
    """Draw bars at their ``y``, in inches from the top."""
    ink = rcParams["text.color"]
    lows, highs = np.array(bars.ratio_quartiles.tolist()).T
    axes.barh(bars.y, bars.ratio - 1, left=1, height=0.78 * BAR, color=colors, lw=0)
    axes.hlines(bars.y, lows, highs, color=ink, lw=1.1, zorder=4)
    diamond = {"ms": 4.5, "mfc": rcParams["axes.facecolor"], "mec": ink, "mew": 1.0, "zorder": 5}
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
    axes.axvline(1, color=style.muted(), lw=1.2)
    axes.set_xlabel("times as fast; left of 1× slower")


def times(ratio: float) -> str:
    """Return a ratio as 12.3×, 1.00× or 0.016×."""
    digits = 1 if ratio >= 9.995 else 2 if ratio >= 0.0995 else 3
    return f"{ratio:.{digits}f}×"


def memory(results: Results) -> Figure | None:
    """Draw the bytes of a parameter with its state, in one panel for each dtype of parameters."""
    if not results.memory:
        return None
    rows = results.frame("memory").sort_values("parameters", ascending=False, kind="stable")
    rows = rows.drop_duplicates(["dtype", "optimizer"]).sort_index()
    panels = {dtype: _memory_bars(rows[rows.dtype == dtype]) for dtype in rows.dtype.unique()}
    heights = [0.27 * len(bars) + 0.42 for bars in panels.values()]
    what = "Parameter (pale) and state (full colour), no gradient; one optimizer of each size."
    words = ("Bytes per parameter", what)
    figure = style.new_figure(9.6, sum(heights) + 0.4, words, results.machine)
    drawn = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (dtype, bars) in zip(drawn, panels.items(), strict=True):
        _draw_memory(axes, bars)
        axes.set_title(f"{dtype} parameters")
    drawn[-1].set_xlim(0, 1.14 * max(bars.total.max() for bars in panels.values()))
    drawn[-1].set_xlabel("bytes per parameter")
    return figure


def _memory_bars(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the best-known setup for each source, kind and size, with the smallest first."""
    bars = rows.assign(
        total=rows.bytes_per_parameter.round(2),
        size=rows.bytes_per_parameter.round(1),
        adafactor=rows.optimizer.str.contains("Adafactor"),
        known=style.rank(rows.optimizer, BEST_KNOWN),
        length=rows.optimizer.str.len(),
        others=rows.source != OURS,
    ).sort_values(["known", "length", "optimizer"])
    bars = bars.drop_duplicates(["source", "adafactor", "size"])
    return bars.groupby("others").head(MOST_BARS).sort_values(["total", "others"], kind="stable")


def _draw_memory(axes: Axes, bars: pd.DataFrame) -> None:
    colors = [style.SOURCES.get(source, style.OTHER) for source in bars.source]
    state = bars.state_bytes_per_parameter
    parameter = bars.bytes_per_parameter - state
    axes.barh(bars.optimizer, parameter, height=0.68, color=colors, alpha=0.38)
    drawn = axes.barh(bars.optimizer, state, left=parameter, height=0.68, color=colors)
    axes.bar_label(drawn, [f"{total:.4g}" for total in bars.total], padding=5, size=9)
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.xaxis.set_major_locator(MultipleLocator(2))
    style.only_grid(axes, "x")
    for label, others in zip(axes.get_yticklabels(), bars.others, strict=True):
        label.set(color=style.muted() if others else rcParams["text.color"])
        label.set_weight("normal" if others else "bold")
