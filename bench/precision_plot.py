"""The picture of ``bench.precision``: curves on the left, where each run ended on the right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

INK, MUTED, GRID, BAND = "#1f2430", "#6b7280", "#e5e7eb", "#c3c8d2"
COLORS = {
    "AdamW split": "#2563eb",
    "AdamW kahan": "#0b8f6a",
    "AdamW stochastic": "#7c3aed",
    "AdamW split, bfloat16 moments": "#0891b2",
    "torch_compat.AdamW": "#c026d3",
    "AdamW nearest": "#e8590c",
    "torch.optim.AdamW": "#b91c1c",
    "Adafactor split": "#2563eb",
}
FIRST_STEP = 200  # before it, all curves fall together
FAMILIES = {"adamw": "AdamW", "adafactor": "Adafactor"}

Run = dict[str, Any]


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw all runs into a PNG."""
    runs = results["runs"]
    with plt.rc_context({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK}):
        figure, (curves, ends) = plt.subplots(1, 2, figsize=(13, 5.6), dpi=130, facecolor="white")
        figure.subplots_adjust(left=0.05, right=0.985, top=0.78, bottom=0.1, wspace=0.62)
        for axes in (curves, ends):
            for side in ("top", "right", "left"):
                axes.spines[side].set_visible(False)
            axes.tick_params(colors=MUTED, length=0, pad=6)
            axes.set_axisbelow(True)
        draw_curves(curves, [run for run in runs if run["optimizer"] == "adamw"])
        draw_ends(ends, runs)
        write_titles(figure, results)
        figure.savefig(path)
        plt.close(figure)


def is_float32(run: Run) -> bool:
    """Whether a run belongs to the reference."""
    return run["dtype"] == "float32"


def draw_curves(axes: Axes, runs: list[Run]) -> None:
    """Losses on held-out files over the steps; float32 as the band between its seeds."""
    reference = [run for run in runs if is_float32(run)]
    steps = [step for step in reference[0]["steps"] if step >= FIRST_STEP]
    late = [run["losses"][-len(steps) :] for run in reference]
    low, high = (list(map(pick, zip(*late, strict=True))) for pick in (min, max))
    axes.fill_between(steps, low, high, color=BAND, lw=0, label=f"float32, {len(reference)} seeds")
    for run in runs:
        if not is_float32(run):
            stalls = run["mode"] in (None, "nearest")
            style = {"lw": 1.8, "ls": "--"} if stalls else {"lw": 1.3}
            losses = run["losses"][-len(steps) :]
            axes.plot(steps, losses, color=COLORS[run["name"]], label=run["name"], **style)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_xlim(FIRST_STEP, steps[-1])
    axes.set_xlabel("step", color=MUTED)
    axes.set_title("AdamW: loss in nats per byte", loc="left", fontsize=10, color=MUTED, pad=10)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def draw_ends(axes: Axes, runs: list[Run]) -> None:
    """Final losses, a row per recipe; the band is what float32 seeds span."""
    names = list(dict.fromkeys(run["name"] for run in runs))
    for family in FAMILIES:
        mine = [run for run in runs if run["optimizer"] == family]
        rows = [names.index(run["name"]) for run in mine]
        seeds = [run["final_loss"] for run in mine if is_float32(run)]
        if seeds:
            band = ([min(rows) - 0.4, max(rows) + 0.4], min(seeds), max(seeds))
            axes.fill_betweenx(*band, color=BAND, alpha=0.6, lw=0)
    for run in runs:
        color = MUTED if is_float32(run) else COLORS[run["name"]]
        axes.plot(run["final_loss"], names.index(run["name"]), "o", ms=6, color=color, mec="white")
    sizes = {run["name"]: run["bytes_per_parameter"] for run in runs}
    axes.set_yticks(range(len(names)), [f"{n}  ·  {sizes[n]:g} B" for n in names], color=INK)
    axes.invert_yaxis()
    axes.grid(axis="x", color=GRID, lw=0.8)
    title = "Final loss, and bytes per parameter of weights and state"
    axes.set_title(title, loc="left", fontsize=10, color=MUTED, pad=10)


def write_titles(figure: plt.Figure, results: dict[str, Any]) -> None:
    """The headline and the facts."""
    settings = results["settings"]
    facts = (
        f"{settings['layers']} layers of width {settings['width']}",
        f"{settings['steps']:,} steps of {settings['batch']} × {settings['context']} bytes of "
        f"{settings['corpus']}",
        "loss on held-out files",
        "grey: what float32 runs span",
    )
    figure.text(0.02, 0.925, "A byte-level GPT in bfloat16", size=17, weight="bold")
    figure.text(0.02, 0.875, "  ·  ".join(facts), color=MUTED, size=10.5)
