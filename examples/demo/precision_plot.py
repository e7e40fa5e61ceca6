"""The picture of training by precision mode: losses over steps, and where each run ended."""

from pathlib import Path
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
    colour, on the left and on the right. Curves are those of the first run's optimizer.
    """
    runs: list[Run] = results["runs"]
    recipes = {run["name"]: run for run in runs}
    low = [name for name, run in recipes.items() if run["dtype"] != "float32"]
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(low)}
    height = 2.2 + 0.36 * len(recipes)
    figure = Figure(figsize=(12.2, height), dpi=150, facecolor="white")
    panels = figure.add_gridspec(
        1, 2, width_ratios=(7, 6), left=0.05, right=0.98, wspace=0.66,
        bottom=0.85 / height, top=1 - 1.15 / height,
    )  # fmt: skip
    losses, ends = panels.subplots()
    _draw_losses(losses, [run for run in runs if run["optimizer"] == runs[0]["optimizer"]], colors)
    _draw_ends(ends, runs, list(recipes.values()), colors)
    _write_titles(figure, results, height)
    return figure


def _draw_losses(axes: Axes, runs: list[Run], colors: dict[str, str]) -> None:
    steps = runs[0]["steps"]
    first = sum(step < LATE * steps[-1] for step in steps[:-2])
    frame(axes, "AdamW: loss on held-out files, nats per byte", steps[first], steps[-1])
    seeds = [run["losses"][first:] for run in runs if run["dtype"] == "float32"]
    if seeds:
        band = (list(map(edge, zip(*seeds, strict=True))) for edge in (min, max))
        axes.fill_between(steps[first:], *band, color=MUTED, alpha=0.4, lw=0)
    for run in runs:
        if run["name"] in colors:
            stalls = run["mode"] in (None, "nearest")  # torch's optimizer names no mode
            line = {"lw": 1.9, "ls": (0, (4, 2))} if stalls else {"lw": 1.4}
            axes.plot(steps[first:], run["losses"][first:], color=colors[run["name"]], **line)


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
    axes.set_yticks(
        range(len(recipes)), [f"{r['name']}  ·  {r['bytes_per_parameter']:.3g} B" for r in recipes]
    )
    for label, run in zip(axes.get_yticklabels(), recipes, strict=True):
        label.set_color(colors.get(run["name"], MUTED))
    axes.set_ylim(len(recipes) - 0.5, -0.5)
    axes.margins(x=0.06)


def _write_titles(figure: Figure, results: dict[str, Any], height: float) -> None:
    settings, machine = results["settings"], results["machine"]
    what = (
        f"{settings['layers']} layers of width {settings['width']}, {settings['steps']:,} steps of "
        f"{settings['batch']} × {settings['context']} bytes of {settings['corpus']}. "
        "Grey: what float32 spans. Dashed: rounded to nearest. Bytes: per parameter, with state."
    )
    title = "A byte-level GPT in float32 and in bfloat16"
    figure.text(0.02, 1 - 0.2 / height, title, size=15, weight="bold", color=INK, va="top")
    figure.text(0.02, 1 - 0.55 / height, what, size=10, color=MUTED, va="top")
    facts = filter(None, (machine.get("cpu"), f"torch {machine['torch']}", machine["date"]))
    figure.text(0.02, 0.15 / height, "  ·  ".join(facts), size=8.2, color=MUTED)
