"""The picture of training by precision mode: losses over steps, and where each run ended."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tools.report import style
from tools.report.style import Theme

TITLE = "A byte-level GPT in float32 and in bfloat16"
LATE = 0.1  # of the steps, where the curves start: before, all fall together
ROW = 0.36  # inches that a recipe takes


def curves(data: dict[str, Any], theme: Theme) -> Figure | None:
    """Draw the results of ``bench.precision``, or return None where no run has ended.

    The float32 runs of an optimizer, one per seed, are a grey band; every other recipe has a
    colour, on the left and on the right. Curves are those of the first run's optimizer.
    """
    runs = pd.DataFrame(data["runs"])
    if runs.empty:
        return None
    runs["reference"] = runs.dtype == "float32"
    names = list(runs.name[~runs.reference].unique())
    colors = {name: style.LINES[i % len(style.LINES)] for i, name in enumerate(names)}
    runs["color"] = runs.name.map(colors).fillna(theme.muted)
    settings, machine = data["settings"], data["machine"]
    what = (
        f"{settings['layers']} layers of width {settings['width']}, {settings['steps']:,} steps of "
        f"{settings['batch']} × {settings['context']} bytes of {settings['corpus']}. "
        "Grey: what float32 spans. Dashed: rounded to nearest. Bytes: per parameter, with state."
    )
    where = (machine.get("cpu"), f"torch {machine['torch']}", machine["date"])
    words = (TITLE, what, "  ·  ".join(filter(None, where)))
    figure = style.new_figure(12.2, runs.name.nunique() * ROW + 1.1, theme, words)
    losses, ends = figure.subplots(1, 2, width_ratios=(7, 6))
    _draw_losses(losses, runs[runs.optimizer == runs.optimizer[0]], theme)
    _draw_ends(ends, runs, theme)
    return figure


def _draw_losses(axes: Axes, runs: pd.DataFrame, theme: Theme) -> None:
    optimizer = {"adamw": "AdamW", "adafactor": "Adafactor"}[runs.optimizer.iloc[0]]
    axes.set(title=f"{optimizer}: loss on held-out files, nats per byte", xlabel="step")
    style.only_grid(axes, "y")
    losses = pd.DataFrame(runs.losses.tolist(), runs.index, runs.steps.iloc[0]).T
    late = losses[losses.index >= LATE * losses.index[-1]]
    losses = late if len(late) > 1 else losses
    references = losses.loc[:, runs.reference]
    if len(references.columns):
        span = (references.min(axis=1), references.max(axis=1))
        axes.fill_between(losses.index, *span, color=theme.muted, alpha=0.4, lw=0)
    for index, run in runs[~runs.reference].iterrows():
        stalls = run["mode"] in (None, "nearest") or pd.isna(run["mode"])  # torch's name no mode
        line = {"lw": 1.9, "ls": (0, (4, 2))} if stalls else {"lw": 1.4}
        axes.plot(losses.index, losses[index], color=run.color, **line)
    axes.set_xlim(losses.index[0], losses.index[-1])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _draw_ends(axes: Axes, runs: pd.DataFrame, theme: Theme) -> None:
    """Draw the last loss of each run, a row per recipe, over what the float32 runs span."""
    axes.set(title="All: loss after the last step")
    axes.set_xlabel("nats per byte")
    style.only_grid(axes, "x")
    axes.spines["left"].set_visible(False)
    recipes = runs.drop_duplicates("name", ignore_index=True)
    rows = runs.name.map({name: row for row, name in enumerate(recipes.name)})
    for _, mine in runs.assign(row=rows).groupby("optimizer"):
        seeds = mine.final_loss[mine.reference]
        if len(seeds):
            band = ([mine.row.min() - 0.4, mine.row.max() + 0.4], seeds.min(), seeds.max())
            axes.fill_betweenx(*band, color=theme.muted, alpha=0.3, lw=0)
    for loss, row, color in zip(runs.final_loss, rows, runs.color, strict=True):
        axes.plot(loss, row, "o", ms=7, color=color, mec=theme.paper, mew=0.8)
    labels = [
        f"{name}  ·  {size:.3g} B"
        for name, size in zip(recipes.name, recipes.bytes_per_parameter, strict=True)
    ]
    axes.set_yticks(recipes.index, labels)
    for label, color in zip(axes.get_yticklabels(), recipes.color, strict=True):
        label.set_color(color)
    axes.set_ylim(len(recipes) - 0.5, -0.5)
    axes.margins(x=0.06)
