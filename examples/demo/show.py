"""What the demo shows: its progress, its table, and the picture of its loss curves."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import fmean, median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: E402
from rich.table import Column, Table  # noqa: E402
from training import FINAL_SHARE, Run  # noqa: E402

INK, MUTED, GRID = "#1f2430", "#6b7280", "#e5e7eb"
RECENT = 20  # steps behind the loss and the time that are shown
# The baseline is broad and pale: a curve equal to it lies inside it.
BASELINE, PALE = "torch-adamw", "#c3c8d2"
COLORS = {"adamw": "#2563eb", "adafactor": "#e8590c", "adam-weight-decay": "#0b8f6a"}
LATE = 0.4  # the right panel leaves out this share of the steps


def progress(console: Console) -> AbstractContextManager[Progress | None]:
    """Return a live display of bars on a terminal, and None anywhere else."""
    if not console.is_terminal or console.is_dumb_terminal:
        return nullcontext()
    text = TextColumn("{task.description:<17}"), TextColumn("{task.fields[shown]:<24}")
    return Progress(text[0], BarColumn(None), MofNCompleteColumn(), text[1], console=console)


def watch(console: Console, bars: Progress | None, key: str, run: Run) -> Callable[[bool], None]:
    """Return what a run calls after each step and, with True, after each evaluation."""
    history, steps = run.history, run.settings.steps
    task = bars.add_task(key, total=steps, completed=run.step, shown="") if bars else None
    write = partial(console.print, f"{key:<17}", soft_wrap=True, highlight=False)

    def show(evaluated: bool) -> None:
        recent = f"{fmean(history['train'][-RECENT:]):.3f}" if run.step else ""
        if bars and not evaluated:
            shown = f"loss {recent}  lr {history['lr'][-1]:.1e}"
            bars.update(task, completed=run.step, shown=shown)
        elif not bars and evaluated:
            text = f"step {run.step:>{len(str(steps))}}/{steps}"
            text += f"  val {history['validation'][-1][1]:.3f}"
            if run.step:
                text += f"  train {recent}  lr {history['lr'][-1]:.2e}"
                text += f"  {median(history['step_ms'][-RECENT:]):.1f} ms/step"
            write(text)

    if run.step and not bars:
        done = f"all {steps} steps already done"
        write(done if run.step == steps else f"resumed at step {run.step} of {steps}")
    return show


def summary_table(curves: dict[str, Any]) -> Table:
    """The result of every run of `curves`, the content of curves.json."""
    caption = f"train loss: mean of the last 1/{FINAL_SHARE} of the steps; ms: medians"
    headings = "train\nloss", "val\nloss", "ms per\nstep", "optimizer\nms", "state bytes\n/ param"
    columns = (Column(heading, justify="right") for heading in headings)
    table = Table("optimizer", *columns, caption=caption, box=None, pad_edge=False)
    for run in curves["runs"].values():
        _, train, validation, step, optimizer, state = run["summary"].values()
        figures = f"{train:.3f}", f"{validation:.3f}", f"{step:.1f}", f"{optimizer:.2f}"
        table.add_row(run["label"], *figures, f"{state:.2f}")
    return table


def frame(axes: Axes, title: str, first: float, last: float) -> None:
    """What all panels share."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.tick_params(colors=MUTED, length=0, pad=6)
    axes.set_xlim(first, last)
    axes.set_xlabel("step", color=MUTED)
    axes.set_title(title, loc="left", fontsize=10, color=MUTED, pad=12)


def draw(curves: dict[str, Any], path: Path) -> None:
    """Draw all runs of `curves` into a PNG: the whole, and the end, where they differ."""
    settings, runs = curves["settings"], curves["runs"]
    steps, late = settings["steps"], LATE * settings["steps"]
    figure, panels = plt.subplots(1, 2, figsize=(13, 6.4), dpi=160, width_ratios=(2, 3))
    losses = []
    for key, run in runs.items():
        at, held_out = zip(*run["validation"], strict=True)
        window = max(1, steps // 25)  # over which training losses are averaged
        train = torch.tensor(run["train"]).unfold(0, window, 1).mean(-1).tolist()
        summary = run["summary"]
        state = f"{summary['state_bytes_per_parameter']:.2f} bytes of state"
        label = f"{run['label']}: {summary['validation_loss']:.3f}, {state}"
        color, base = COLORS.get(key, PALE), key == BASELINE
        for panel in panels:
            panel.plot(range(window, steps + 1), train, color=color, lw=4 if base else 1, alpha=0.4)
            style = {"lw": 7} if base else {"lw": 1.8, "marker": "o", "ms": 4}
            panel.plot(at, held_out, color=color, zorder=1 if base else 3, label=label, **style)
        losses += [loss for step, loss in run["validation"] if step >= late and isfinite(loss)]
    low, high = min(losses, default=0.0), max(losses, default=1.0)
    frame(panels[0], "Loss in nats per byte", 0, steps)
    frame(panels[1], f"The last {1 - LATE:.0%} of the steps", late, steps)
    panels[1].set_ylim(low - 0.25 * (high - low) - 0.01, high + 0.25 * (high - low) + 0.01)
    panels[0].legend(title="held-out files (pale: training, smoothed)", frameon=False, fontsize=9)
    modes = {"bf16": f"bf16 (low_precision={settings['low_precision']})"}
    facts = f"{run['summary']['parameters'] / 1e6:.2f}M parameters  ·  {steps:,} steps of "
    facts += f"{settings['batch']} × {settings['context']} bytes of {curves['corpus']}  ·  "
    facts += f"{modes.get(settings['dtype'], 'fp32')} on {settings['device']}"
    figure.suptitle(f"One byte-level GPT, the same weights and batches\n{facts}", ha="center")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
