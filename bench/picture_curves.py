"""The picture of losses by precision mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench import style
from bench.picture_lines import panels
from bench.style import Theme

LATE = 0.1  # where the vertical axis starts to count: before, all curves fall together
Run = dict[str, Any]


def curves(data: dict[str, Any], theme: Theme) -> Figure | None:
    """Draw losses over steps: a line per name, which is a band where it has several runs.

    Args:
        data: ``{"runs": [{"name", "steps": [...], "losses": [...]}]}``. Of runs that name their
            "optimizer", those of the first one's are drawn.
        theme: the colours.
    """
    runs = [run for run in data["runs"] if run["steps"]]
    runs = [run for run in runs if run.get("optimizer") == runs[0].get("optimizer")]
    if not runs:
        return None
    figure, (axes,) = panels(1, 5.6, theme)
    style.frame(axes, theme, "Loss", "y")
    names = list(dict.fromkeys(run["name"] for run in runs))[: len(style.LINES)]
    ends = []
    for name, color in zip(names, style.LINES, strict=False):
        last = _line(axes, [run for run in runs if run["name"] == name], color)
        if math.isfinite(last[1]):
            ends.append((*last, f"{name}  {last[1]:.3f}", color))
    _limits(axes, [run for run in runs if run["name"] in names])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel("step", color=theme.muted, size=9.5)
    style.label_ends(axes, ends, 0.06)
    what = "The same initial weights and batches; the number is the last loss."
    style.titles(figure, theme, "Loss by precision mode", what)
    machine = data.get("machine") or {}
    facts = [machine.get("cpu"), f"torch {machine.get('torch')}", machine.get("date")]
    if machine:
        at = (0.25 / figure.get_figwidth(), 0.14 / figure.get_figheight())
        figure.text(*at, "  ·  ".join(filter(None, facts)), size=8.2, color=theme.muted)
    return figure


def _line(axes: Axes, runs: Sequence[Run], color: str) -> tuple[float, float]:
    """Draw the mean of runs, and what they span; returns the last point."""
    steps = min((run["steps"] for run in runs), key=len)
    losses = [smoothed(run["losses"])[: len(steps)] for run in runs]
    mean = [sum(at) / len(at) for at in zip(*losses, strict=True)]
    axes.plot(steps, mean, color=color, lw=1.9, zorder=3)
    if len(runs) > 1:
        low, high = ([f(at) for at in zip(*losses, strict=True)] for f in (min, max))
        axes.fill_between(steps, low, high, color=color, alpha=0.22, lw=0, zorder=2)
    return steps[-1], mean[-1]


def _limits(axes: Axes, runs: Sequence[Run]) -> None:
    last = max(run["steps"][-1] for run in runs)
    first = LATE * last
    late = [
        loss
        for run in runs
        for step, loss in zip(run["steps"], smoothed(run["losses"]), strict=True)
        if step >= first and math.isfinite(loss)
    ]
    axes.set_xlim(first, last)
    if late:
        room = 0.06 * (max(late) - min(late)) or 0.1
        axes.set_ylim(min(late) - room, max(late) + room)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return a running mean over a fiftieth of the run; of short ones, the losses themselves."""
    keep = 1 - 1 / max(1.0, len(losses) / 50)
    total = weight = 0.0
    result = []
    for loss in losses:
        total, weight = keep * total + loss, keep * weight + 1
        result.append(total / weight)
    return result
