"""Pictures made of lines: bandwidth, and the time of a step by size and by number of tensors."""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.goals import GOALS
from bench.results import Results
from bench.setups import BEST_KNOWN, OURS
from bench.shapes import FIXED_SIZE, FIXED_TENSORS, kind_of
from tools.report import style

MOST_LINES = 7
OPS = {"adamw": "AdamW", "lion": "Lion", "adafactor": "Adafactor"}


def chosen(rows: pd.DataFrame, most: int = MOST_LINES) -> list[str]:
    """Return the names of at most ``most`` lines; half of them or more are this package's.

    The best-known names come first, then the names with the most points.
    """
    lines = rows.groupby(["line", "optimizer", "source"], as_index=False).size()
    lines["known"] = style.rank(lines.optimizer, BEST_KNOWN)
    lines = lines.sort_values(["known", "size", "line"], ascending=[True, False, True])
    ours, others = (list(lines.line[mask]) for mask in (lines.source == OURS, lines.source != OURS))
    kept = ours[: max(most - len(others), (most + 1) // 2)]
    return [*kept, *others[: most - len(kept)]]


def _draw(axes: Axes, rows: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Draw the chosen lines, other packages' dashed, and return their rows of the table."""
    names = chosen(rows)
    rows = rows[rows.line.isin(names)]
    ours = set(rows.line[rows.source == OURS])
    sns.lineplot(
        rows, x=x, y=y, hue="line", style="line", hue_order=names, style_order=names,
        palette=list(style.LINES[: len(names)]), markers=list("osD^vPX"[: len(names)]),
        dashes=["" if name in ours else (4, 2) for name in names], estimator=None, ax=axes,
    )  # fmt: skip
    sns.move_legend(axes, "upper left", bbox_to_anchor=(1, 1), title=None)
    style.logarithmic(axes, "x", rows[x].min() / 1.5, rows[x].max() * 1.5)
    style.only_grid(axes, "y")
    axes.set(xlabel=x, ylabel="")
    return rows


def _rows(results: Results) -> pd.DataFrame:
    rows = results.frame("rows")
    rows["line"] = rows.optimizer + " " + rows.dtype
    rows["swept"] = rows.shapes.map(kind_of)
    return rows


def _panels(results: Results, count: int, words: tuple[str, str]) -> tuple[Figure, list[Axes]]:
    figure = style.new_figure(12.2 if count == 2 else 8.6, 4.2, words, results.machine)
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def roofline(results: Results) -> Figure | None:
    """Draw the share of a copy's bandwidth that a step reaches, by the size of the model."""
    rows = _rows(results).dropna(subset="copy_percent")
    # Nothing is drawn without a line of this package, as on a CPU where plain PyTorch steps.
    ops = [op for op in OPS if ((rows.op == op) & (rows.source == OURS)).any()]
    if not ops:
        return None
    what = "Bytes that a step has to move over its time, in percent of a copy within the device"
    what += f" ({results.copy.gb_per_s:,.0f} GB/s)." if results.copy else "."
    words = ("Share of the memory bandwidth that a step uses", what)
    figure, panels = _panels(results, len(ops), words)
    for axes, op in zip(panels, ops, strict=True):
        mine = rows[rows.op == op]
        # Lists of equal tensors are preferred, as models differ in more than their size.
        swept = mine[mine.swept == FIXED_TENSORS]
        shown = _draw(axes, swept if len(swept) else mine, "parameters", "copy_percent")
        axes.set(ylim=(0, max(108.0, 1.05 * shown.copy_percent.max())), title=OPS[op])
        axes.yaxis.set_major_formatter("{x:.0f} %")
        goal = GOALS[f"{op} bandwidth"].goal
        marks = ((100, "a copy", "bottom", "-"), (goal, f"goal, {goal:g} %", "top", ":"))
        for y, text, va, line in marks:
            axes.axhline(y, color=style.muted(), lw=1, ls=line)
            how = {"size": 8.2, "color": style.muted(), "va": va, "textcoords": "offset points"}
            offset = (0, 3 if va == "bottom" else -3)
            axes.annotate(text, (shown.parameters.min() / 1.4, y), offset, **how)
    return figure


def scaling(results: Results) -> Figure | None:
    """Draw the time of a step by number of tensors and by number of parameters."""
    rows = _rows(results)
    kinds = [kind for kind in (FIXED_SIZE, FIXED_TENSORS) if kind in set(rows.swept)]
    if not kinds:
        return None
    what = "Median time of a step; both axes are logarithmic. Dashed: other packages."
    words = ("Cost by number of tensors and of parameters", what)
    figure, panels = _panels(results, len(kinds), words)
    for axes, kind in zip(panels, kinds, strict=True):
        mine = rows[rows.swept == kind]
        if kind == FIXED_SIZE:
            x, all_of = "tensors", style.si(mine.parameters.max())
            title = f"{all_of} parameters, split into more and more tensors"
        else:
            x, title = "parameters", f"{style.si(mine.tensors.max())} tensors, larger and larger"
        shown = _draw(axes, mine, x, "ms")
        style.logarithmic(axes, "y", shown.ms.min() / 1.6, shown.ms.max() * 1.6, _milliseconds)
        axes.set_title(title)
    return figure


def _milliseconds(ms: float) -> str:
    if ms >= 1000:
        return f"{ms / 1000:g} s"
    return f"{ms:g} ms" if ms >= 1 else f"{1000 * ms:g} µs"
