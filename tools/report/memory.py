"""The picture of bytes per parameter, a bar per optimizer."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from bench.results import Results
from bench.setups import BEST_KNOWN, OURS
from bench.tables import frame
from tools.report import style
from tools.report.style import Theme

MOST_BARS = 9  # of this package, and of the others, in a panel


def memory(results: Results, theme: Theme) -> Figure | None:
    """Draw the bytes that a parameter and its state take, a panel per dtype of the parameters."""
    if not results.memory:
        return None
    rows = frame(results.memory).sort_values("parameters", ascending=False, kind="stable")
    rows = rows.drop_duplicates(["dtype", "optimizer"]).sort_index()
    panels = {dtype: _bars(rows[rows.dtype == dtype]) for dtype in rows.dtype.unique()}
    heights = [0.27 * len(bars) + 0.42 for bars in panels.values()]
    what = "Parameter (pale) and state (full colour), no gradient; one optimizer of each size."
    words = ("Bytes per parameter", what, style.machine_line(results.machine))
    figure = style.new_figure(9.6, sum(heights) + 0.4, theme, words)
    drawn = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (dtype, bars) in zip(drawn, panels.items(), strict=True):
        _draw(axes, bars, theme)
        axes.set_title(f"{dtype} parameters")
    drawn[-1].set_xlim(0, 1.14 * max(bars.total.max() for bars in panels.values()))
    drawn[-1].set_xlabel("bytes per parameter")
    return figure


def _bars(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each source, kind and size, the best known; the smallest first."""
    rank = {name: index for index, name in enumerate(BEST_KNOWN)}
    bars = rows.assign(
        total=rows.bytes_per_parameter.round(2),
        size=rows.bytes_per_parameter.round(1),
        adafactor=rows.optimizer.str.contains("Adafactor"),
        known=rows.optimizer.map(rank).fillna(len(rank)),
        length=rows.optimizer.str.len(),
        others=rows.source != OURS,
    ).sort_values(["known", "length", "optimizer"])
    bars = bars.drop_duplicates(["source", "adafactor", "size"])
    return bars.groupby("others").head(MOST_BARS).sort_values(["total", "others"], kind="stable")


def _draw(axes: Axes, bars: pd.DataFrame, theme: Theme) -> None:
    colors = [style.SOURCES.get(source, style.OTHER) for source in bars.source]
    state = bars.state_bytes_per_parameter
    parameter = bars.bytes_per_parameter - state
    axes.barh(bars.optimizer, parameter, height=0.68, color=colors, alpha=0.38)
    drawn = axes.barh(bars.optimizer, state, left=parameter, height=0.68, color=colors)
    texts = [f"{total:.2f}".rstrip("0").rstrip(".") for total in bars.total]
    axes.bar_label(drawn, texts, padding=5, size=9, color=theme.ink)
    axes.set_ylim(len(bars) - 0.45, -0.55)
    axes.xaxis.set_major_locator(MultipleLocator(2))
    style.only_grid(axes, "x")
    for label, others in zip(axes.get_yticklabels(), bars.others, strict=True):
        label.set(color=theme.muted if others else theme.ink)
        label.set_weight("normal" if others else "bold")
