"""The picture of training by precision mode: losses over steps, and where each run ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench import style
from bench.style import Theme

TITLE = "A byte-level GPT in float32 and in bfloat16"
LATE = 0.1  # of the steps, where the curves start: before, all fall together
ROW = 0.36  # inches that a recipe takes
Run = dict[str, Any]


def curves(data: dict[str, Any], theme: Theme) -> Figure | None:
    """Draw the results of ``bench.precision``, or return None where no run has ended.

    The float32 runs of an optimizer, one per seed, are a grey band; every other recipe has a
    colour, on the left and on the right. Curves are those of the first run's optimizer.
    """
    runs = data["runs"]
    if not runs:
        return None
    colors = _colors(runs, theme)
    height = len(dict.fromkeys(run["name"] for run in runs)) * ROW + 2.2
    figure = style.new_figure(12.2, height, theme)
    bottom, tall = 0.92 / height, (height - 2.2) / height
    _draw_losses(figure.add_axes((0.05, bottom, 0.36, tall)), runs, colors, theme)
    _draw_ends(figure.add_axes((0.66, bottom, 0.31, tall)), runs, colors, theme)
    style.titles(figure, theme, TITLE, _subtitle(data["settings"]))
    machine = data["machine"]
    where = (machine.get("cpu"), f"torch {machine['torch']}", machine["date"])
    style.footer(figure, theme, "  ·  ".join(filter(None, where)))
    return figure


def _subtitle(settings: dict[str, Any]) -> str:
    return (
        f"{settings['layers']} layers of width {settings['width']}, {settings['steps']:,} steps of "
        f"{settings['batch']} × {settings['context']} bytes of {settings['corpus']}. "
        "Grey: what float32 spans. Dashed: rounded to nearest."
    )


def _is_reference(run: Run) -> bool:
    return run["dtype"] == "float32"


def _rounds_to_nearest(run: Run) -> bool:
    """Whether small updates are lost; torch's optimizers name no mode."""
    return run["mode"] in (None, "nearest")


def _colors(runs: Sequence[Run], theme: Theme) -> dict[str, str]:
    """Return a colour for each recipe; those of float32 are grey."""
    names = dict.fromkeys(run["name"] for run in runs if not _is_reference(run))
    colors = {name: style.LINES[i % len(style.LINES)] for i, name in enumerate(names)}
    return {run["name"]: theme.muted for run in runs if _is_reference(run)} | colors


def _draw_losses(axes: Axes, runs: Sequence[Run], colors: dict[str, str], theme: Theme) -> None:
    """Draw the curves of the first run's optimizer."""
    runs = [run for run in runs if run["optimizer"] == runs[0]["optimizer"]]
    optimizer = {"adamw": "AdamW", "adafactor": "Adafactor"}[runs[0]["optimizer"]]
    style.frame(axes, theme, f"{optimizer}: loss on held-out files, nats per byte", "y")
    steps = runs[0]["steps"]
    late = [i for i, step in enumerate(steps) if step >= LATE * steps[-1]]
    late = late if len(late) > 1 else list(range(len(steps)))
    steps = [steps[i] for i in late]
    references = [[run["losses"][i] for i in late] for run in runs if _is_reference(run)]
    if references:
        low, high = ([pick(at) for at in zip(*references, strict=True)] for pick in (min, max))
        axes.fill_between(steps, low, high, color=theme.muted, alpha=0.4, lw=0, zorder=2)
    for run in runs:
        if not _is_reference(run):
            line = {"lw": 1.9, "ls": (0, (4, 2))} if _rounds_to_nearest(run) else {"lw": 1.4}
            losses = [run["losses"][i] for i in late]
            axes.plot(steps, losses, color=colors[run["name"]], zorder=3, **line)
    axes.set_xlim(steps[0], steps[-1])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel("step", color=theme.muted, size=9.5)


def _draw_ends(axes: Axes, runs: Sequence[Run], colors: dict[str, str], theme: Theme) -> None:
    """Draw the last loss of each run, a row per recipe, over what the float32 runs span."""
    style.frame(axes, theme, "All: loss after the last step", "x")
    axes.spines["left"].set_visible(False)
    names = list(dict.fromkeys(run["name"] for run in runs))
    for family in dict.fromkeys(run["optimizer"] for run in runs):
        mine = [run for run in runs if run["optimizer"] == family]
        seeds = [run["final_loss"] for run in mine if _is_reference(run)]
        if seeds:
            rows = [names.index(run["name"]) for run in mine]
            band = ([min(rows) - 0.4, max(rows) + 0.4], min(seeds), max(seeds))
            axes.fill_betweenx(*band, color=theme.muted, alpha=0.3, lw=0, zorder=2)
    for run in runs:
        dot = {"ms": 7, "color": colors[run["name"]], "mec": theme.paper, "mew": 0.8, "zorder": 3}
        axes.plot(run["final_loss"], names.index(run["name"]), "o", **dot)
    sizes = {run["name"]: run["bytes_per_parameter"] for run in runs}
    axes.set_yticks(range(len(names)), [f"{name}  ·  {sizes[name]:.3g} B" for name in names])
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color(colors[name])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.06)
    axes.set_xlabel("nats per byte", color=theme.muted, size=9.5)
    axes.text(
        -0.03, 1.03, "bytes per parameter, state included", size=8.4, color=theme.muted,
        ha="right", va="bottom", transform=axes.transAxes,
    )  # fmt: skip
