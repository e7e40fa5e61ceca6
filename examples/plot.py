"""The picture of the loss curves."""

import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator  # noqa: E402

INK, MUTED, GRID = "#1f2430", "#6b7280", "#e5e7eb"
# The baseline is broad and pale: a curve equal to it lies inside it.
BASELINE = "torch-adamw"
COLORS = {
    BASELINE: "#c3c8d2",
    "adamw": "#2563eb",
    "adafactor": "#e8590c",
    "adam-weight-decay": "#0b8f6a",
}
LATE = 0.4  # the right panel leaves out this share of the steps
LABEL_GAP = 0.13  # between two labels, as a share of the panel's height
NUMBERS = {1: "one optimizer", 2: "two optimizers", 3: "three optimizers", 4: "four optimizers"}
Points = tuple[list[float], list[float]]


def draw(curves: dict[str, Any], path: Path) -> None:
    """Draw all runs of `curves` (the content of curves.json) into a PNG."""
    with plt.rc_context({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK}):
        figure = plt.figure(figsize=(13, 6.4), dpi=160, facecolor="white")
        whole = figure.add_axes((0.045, 0.1, 0.27, 0.69))
        late = figure.add_axes((0.36, 0.1, 0.4, 0.69))
        for key, run in curves["runs"].items():
            for axes in (whole, late):
                draw_run(axes, key, run)
        frame_whole(whole, curves)
        frame_late(late, curves)
        label_ends(late, curves["runs"])
        write_titles(figure, curves)
        figure.savefig(path)
        plt.close(figure)


def draw_run(axes: Axes, key: str, run: dict[str, Any]) -> None:
    """One optimizer's two curves: training pale and behind, validation on top."""
    color = COLORS[key]
    if key == BASELINE:
        axes.plot(*validation(run), color=color, lw=7, zorder=1, solid_capstyle="round")
        axes.plot(*training(run), color=color, lw=4, alpha=0.45, zorder=1)
        return
    axes.plot(*training(run), color=color, lw=1, alpha=0.4, zorder=2)
    dots = {"marker": "o", "ms": 4, "mec": "white", "mew": 0.8}
    axes.plot(*validation(run), color=color, lw=1.8, zorder=3, **dots)


def training(run: dict[str, Any]) -> Points:
    """Steps and training losses, averaged exponentially over about a twenty-fifth of the run."""
    keep = 1 - 1 / max(1.0, len(run["train"]) / 25)
    total = weight = 0.0
    losses = []
    for loss in run["train"]:
        total, weight = keep * total + loss, keep * weight + 1
        losses.append(total / weight)
    return [step + 1.0 for step in range(len(losses))], losses


def validation(run: dict[str, Any]) -> Points:
    """Steps and validation losses."""
    steps, losses = zip(*run["validation"], strict=True)
    return list(steps), list(losses)


def losses_from(curves: dict[str, Any], first_step: float) -> list[float]:
    """Every finite loss that is drawn from `first_step` on."""
    points = [
        point
        for run in curves["runs"].values()
        for kind in (training, validation)
        for point in zip(*kind(run), strict=True)
    ]
    return [loss for step, loss in points if step >= first_step and math.isfinite(loss)]


def frame(axes: Axes, title: str, first: float, last: int) -> None:
    """What both panels share."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#9ca3af")
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0, pad=6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.set_xlim(first, last)
    axes.set_xlabel("step", color=MUTED)
    axes.set_title(title, loc="left", fontsize=10, color=MUTED, pad=12)


def frame_whole(axes: Axes, curves: dict[str, Any]) -> None:
    """The left panel: everything, on a logarithmic axis with readable ticks."""
    frame(axes, "Loss in nats per byte (log scale)", 0, curves["settings"]["steps"])
    axes.set_yscale("log")
    losses = losses_from(curves, 0)
    if losses:
        low, high = min(losses) * 0.94, max(losses) * 1.04
        axes.set_ylim(low, high)
        step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, high) if (high - low) / s <= 9)
        ticks = [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def frame_late(axes: Axes, curves: dict[str, Any]) -> None:
    """The right panel: where the optimizers differ, and the key to the two kinds of line."""
    steps = curves["settings"]["steps"]
    frame(axes, f"The last {1 - LATE:.0%} of the steps (linear scale)", LATE * steps, steps)
    losses = losses_from(curves, LATE * steps)
    if losses:
        margin = 0.07 * (max(losses) - min(losses)) or 0.1
        axes.set_ylim(min(losses) - margin, max(losses) + margin)
    axes.legend(
        handles=[
            Line2D([], [], color=INK, lw=1.8, marker="o", ms=4, label="held-out files"),
            Line2D([], [], color=INK, lw=1, alpha=0.4, label="training batches, smoothed"),
        ],
        loc="upper left", bbox_to_anchor=(1.048, 1.01), frameon=False, fontsize=9,
        labelcolor=MUTED, handlelength=2.2, borderaxespad=0, labelspacing=0.8,
    )  # fmt: skip


def label_ends(axes: Axes, runs: dict[str, Any]) -> None:
    """Name each curve at its right end, in the curves' order, moved apart where needed."""
    low, high = axes.get_ylim()
    ends = {key: (validation(run)[1][-1] - low) / (high - low) for key, run in runs.items()}
    ends = {key: end for key, end in ends.items() if math.isfinite(end)}
    keys = sorted(ends, key=lambda key: ends[key])
    for key, place in zip(keys, spread([ends[key] for key in keys]), strict=True):
        summary = runs[key]["summary"]
        color = "#858c9b" if key == BASELINE else COLORS[key]
        inside = {"transform": axes.transAxes, "va": "center"}
        axes.plot(
            (1.008, 1.035, 1.05), (ends[key], place, place),
            color=color, lw=1, transform=axes.transAxes, clip_on=False,
        )  # fmt: skip
        axes.text(
            1.06, place, runs[key]["label"], color=color, weight="bold", fontsize=10.5, **inside
        )
        facts = (
            f"loss {summary['validation_loss']:.3f}  ·  "
            f"{summary['state_bytes_per_parameter']:.2f} state bytes / param"
        )
        axes.text(1.06, place - 0.046, facts, color=MUTED, fontsize=8.8, **inside)


def spread(places: list[float]) -> list[float]:
    """Move ascending places apart to at least the label gap, centred on where they were."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + LABEL_GAP) if moved else place)
    if not moved:
        return moved
    shift = sum(moved) / len(moved) - sum(places) / len(places)
    shift = max(min(shift, moved[0] - 0.06), moved[-1] - 0.98)
    return [place - shift for place in moved]


def write_titles(figure: Figure, curves: dict[str, Any]) -> None:
    """The headline and the facts."""
    settings, runs = curves["settings"], curves["runs"]
    parameters = max(run["summary"]["parameters"] for run in runs.values())
    low_precision = f"bf16 parameters (low_precision={settings['low_precision']})"
    dtype = {"fp32": "fp32", "bf16": low_precision}[settings["dtype"]]
    device = "GPU" if settings["device"].startswith("cuda") else settings["device"].upper()
    facts = (
        f"{parameters / 1e6:.2f}M parameters",
        f"{settings['steps']:,} steps of {settings['batch']} × {settings['context']} bytes of "
        f"{curves['corpus']}",
        f"{dtype} on {device}",
        "same initial weights, same batches",
    )
    figure.text(0.02, 0.93, f"One byte-level GPT, {NUMBERS[len(runs)]}", size=17, weight="bold")
    figure.text(0.02, 0.884, "  ·  ".join(facts), color=MUTED, size=10.5)
