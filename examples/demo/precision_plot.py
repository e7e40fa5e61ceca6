"""The picture of training by precision mode: losses over steps, and where each run ended."""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from show import GRID, INK, MUTED, frame

COLORS = ("#2f86d6", "#e07b1a", "#0e9c78", "#c65fa0", "#c9a40a", "#8c7be0", "#2aa7c4", "#b0554d")
LATE = 0.1  # of the steps, where the curves start: before, all fall together
Run = dict[str, Any]


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw what ``precision.py`` measured into a PNG."""
    picture(results).savefig(path)


def picture(results: dict[str, Any]) -> Figure:
    """Return the losses over steps, and where each run ended.

    The float32 runs of an optimizer, one for each seed, are a grey band. Every other recipe has a
    colour, on the left and on the right. Curves are those of the first run's optimizer; where
    recipes have several seeds, they are means, and differences to the mean of float32's.
    """
    runs: list[Run] = results["runs"]
    recipes = {run["name"]: run for run in runs}
    low = [name for name, run in recipes.items() if run["dtype"] != "float32"]
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(low)}
    height = 2.2 + 0.36 * len(recipes)
    figure = Figure(figsize=(12.2, height), dpi=150, facecolor="white")
    longest = max(len(_label(run)) for run in recipes.values())
    room = max(0.66, 0.04 * longest - 0.84)  # between the panels, in widths of one
    panels = figure.add_gridspec(
        1, 2, width_ratios=(7, 6), left=0.05, right=0.98, wspace=room,
        bottom=0.85 / height, top=1 - 1.15 / height,
    )  # fmt: skip
    losses, ends = panels.subplots()
    mine = [run for run in runs if run["optimizer"] == runs[0]["optimizer"]]
    several = any(run["seed"] for run in mine if run["name"] in colors)
    (_draw_differences if several else _draw_losses)(losses, mine, colors)
    _draw_ends(ends, runs, list(recipes.values()), colors)
    _write_titles(figure, results, height)
    return figure


def _draw_losses(axes: Axes, runs: list[Run], colors: dict[str, str]) -> None:
    steps, first = runs[0]["steps"], _first(runs)
    frame(axes, "AdamW: loss on held-out files, nats per byte", steps[first], steps[-1])
    seeds = [run["losses"][first:] for run in runs if run["dtype"] == "float32"]
    if seeds:
        band = (list(map(edge, zip(*seeds, strict=True))) for edge in (min, max))
        axes.fill_between(steps[first:], *band, color=MUTED, alpha=0.4, lw=0)
    for run in runs:
        if run["name"] in colors:
            line = {"lw": 1.9, "ls": (0, (4, 2))} if _stalls(run) else {"lw": 1.4}
            axes.plot(steps[first:], run["losses"][first:], color=colors[run["name"]], **line)


def _draw_differences(axes: Axes, runs: list[Run], colors: dict[str, str]) -> None:
    """Draw the mean of each recipe's seeds, and the span of float32's, less the mean of float32."""
    steps, first = runs[0]["steps"], _first(runs)
    title = "AdamW: mean loss of all seeds, less float32's, nats per byte"
    frame(axes, title, steps[first], steps[-1])
    seeds = [run["losses"][first:] for run in runs if run["dtype"] == "float32"]
    exact = list(map(fmean, zip(*seeds, strict=True)))
    band = (_less(map(edge, zip(*seeds, strict=True)), exact) for edge in (min, max))
    axes.fill_between(steps[first:], *band, color=MUTED, alpha=0.3, lw=0)
    for name, color in colors.items():
        curves = [run["losses"][first:] for run in runs if run["name"] == name]
        if curves:
            mean = _less(map(fmean, zip(*curves, strict=True)), exact)
            axes.plot(steps[first:], mean, color=color, lw=1.8)


def _less(values: Iterator[float], exact: list[float]) -> list[float]:
    return [value - other for value, other in zip(values, exact, strict=True)]


def _first(runs: list[Run]) -> int:
    """Return which evaluation the curves start with."""
    steps = runs[0]["steps"]
    return sum(step < LATE * steps[-1] for step in steps[:-2])


def _stalls(run: Run) -> bool:
    """Return whether small updates are lost; torch's optimizer names no mode."""
    return run["dtype"] != "float32" and run["mode"] in (None, "nearest")


def _label(run: Run) -> str:
    return f"{run['name']}  ·  {run['bytes_per_parameter']:.3g} B"


def _draw_ends(axes: Axes, runs: list[Run], recipes: list[Run], colors: dict[str, str]) -> None:
    """Draw the last loss of each run, a line for each recipe, over what the float32 runs span."""
    axes.set_title("All: loss after the last step", loc="left", fontsize=10, color=MUTED, pad=12)
    axes.set_xlabel("nats per byte", color=MUTED)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.spines["bottom"].set_color("#9ca3af")
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=GRID, lw=0.8)
    axes.tick_params(colors=MUTED, length=0, pad=6)
    lines = {run["name"]: line for line, run in enumerate(recipes)}
    for optimizer in dict.fromkeys(run["optimizer"] for run in runs):
        mine = [run for run in runs if run["optimizer"] == optimizer]
        seeds = [run["final_loss"] for run in mine if run["dtype"] == "float32"]
        if seeds:
            at = [lines[run["name"]] for run in mine]
            span = ([min(at) - 0.4, max(at) + 0.4], min(seeds), max(seeds))
            axes.fill_betweenx(*span, color=MUTED, alpha=0.3, lw=0)
    for run in runs:
        color = colors.get(run["name"], MUTED)
        axes.plot(run["final_loss"], lines[run["name"]], "o", ms=7, color=color, mec="white")
    axes.set_yticks(range(len(recipes)), list(map(_label, recipes)))
    for label, run in zip(axes.get_yticklabels(), recipes, strict=True):
        label.set_color(colors.get(run["name"], MUTED))
    axes.set_ylim(len(recipes) - 0.5, -0.5)
    axes.margins(x=0.06)


def _write_titles(figure: Figure, results: dict[str, Any], height: float) -> None:
    settings, machine = results["settings"], results["machine"]
    dashed = " Dashed: rounded to nearest." if any(map(_stalls, results["runs"])) else ""
    what = (
        f"{settings['layers']} layers of width {settings['width']}, {settings['steps']:,} steps of "
        f"{settings['batch']} × {settings['context']} bytes of {settings['corpus']}. "
        f"Grey: what float32 spans.{dashed} Bytes: per parameter, with state."
    )
    title = "A byte-level GPT in float32 and in bfloat16"
    figure.text(0.02, 1 - 0.2 / height, title, size=15, weight="bold", color=INK, va="top")
    figure.text(0.02, 1 - 0.55 / height, what, size=10, color=MUTED, va="top")
    facts = filter(None, (machine.get("cpu"), f"torch {machine['torch']}", machine["date"]))
    figure.text(0.02, 0.15 / height, "  ·  ".join(facts), size=8.2, color=MUTED)
