"""How every picture looks: colours that the colour-blind can tell apart, axes, labels, footer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from bench.results import Machine


@dataclass(frozen=True)
class Theme:
    """The colours of everything but the data."""

    ink: str
    muted: str
    grid: str
    paper: str


LIGHT = Theme(ink="#1f2430", muted="#646b78", grid="#e5e7eb", paper="#ffffff")
DARK = Theme(ink="#e8eaf0", muted="#a0a7b4", grid="#343a46", paper="#16191f")

# Okabe and Ito's palette, of which each pair differs to every common kind of colour blindness.
OURS = "#2f86d6"
SOURCES = {
    "fused_optim": OURS,
    "torch": "#e07b1a",
    "transformers": "#c65fa0",
    "optimi": "#0e9c78",
    "torchao": "#c9a40a",
    "bitsandbytes": "#8c7be0",
    "flashoptim": "#2aa7c4",
    "apex": "#b0554d",
    "transformer_engine": "#7c8a3a",
}
OTHER = "#8a909c"
LINES = ("#2f86d6", "#e07b1a", "#0e9c78", "#c65fa0", "#c9a40a", "#8c7be0", "#2aa7c4", "#b0554d")
MARKERS = "osD^vPXh"

LABEL_GAP = 0.062  # between two labels at the ends of lines, as a share of an axis


def color_of(source: str) -> str:
    """Return the colour of a package."""
    return SOURCES.get(source, OTHER)


def new_figure(width: float, height: float, theme: Theme) -> Figure:
    """Return an empty figure; it belongs to no window and to no global state."""
    return Figure(figsize=(width, height), facecolor=theme.paper)


def rc() -> dict[str, object]:
    """Return the settings to draw under, for `matplotlib.rc_context`."""
    return {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.unicode_minus": False,
        "svg.fonttype": "path",
        "svg.hashsalt": "fused_optim",  # the same figures give the same file
        "axes.formatter.useoffset": False,
    }


def context() -> matplotlib.rc_context:
    """Return the context in which figures are drawn and saved."""
    return matplotlib.rc_context(rc())


def frame(axes: Axes, theme: Theme, title: str, grid: str) -> None:
    """Take away what carries nothing, and add a title and a grid along ``grid``."""
    axes.set_facecolor(theme.paper)
    for side in ("top", "right", "left" if grid == "y" else "bottom"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.muted)
    axes.grid(axis=grid, color=theme.grid, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.muted, length=0, pad=5, labelsize=9.5)
    axes.set_title(title, loc="left", fontsize=10.5, color=theme.ink, weight="bold", pad=10)


def titles(figure: Figure, theme: Theme, title: str, subtitle: str) -> None:
    """Write the headline and what is shown, at places given in inches."""
    height = figure.get_figheight()
    place = {"ha": "left", "va": "top", "transform": figure.transFigure}
    x = 0.25 / figure.get_figwidth()
    figure.text(x, 1 - 0.18 / height, title, size=15, weight="bold", color=theme.ink, **place)
    figure.text(x, 1 - 0.52 / height, subtitle, size=10, color=theme.muted, **place)


def footer(figure: Figure, theme: Theme, line: str) -> None:
    """Write where the figures come from."""
    at = (0.25 / figure.get_figwidth(), 0.14 / figure.get_figheight())
    figure.text(*at, line, size=8.2, color=theme.muted, ha="left", va="bottom")


def machine_line(machine: Machine) -> str:
    """Return the machine, the versions and the date in a line."""
    where = machine.gpu or f"{machine.cpu}, {machine.threads} threads"
    facts = [where, f"torch {machine.torch}"]
    facts += [f"Triton {machine.triton}"] if machine.triton and machine.gpu else []
    facts += [f"CUDA {machine.cuda}"] if machine.cuda and machine.gpu else []
    facts += [f"driver {machine.driver}"] if machine.driver else []
    facts += [f"fused_optim {machine.fused_optim} ({machine.commit})", machine.date]
    return "  ·  ".join(facts)


def log_x(axes: Axes, ticks: Sequence[float], unit: str = "") -> None:
    """Make the horizontal axis logarithmic, with these ticks and no others."""
    axes.set_xscale("log")
    axes.set_xticks(list(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: si(x) + unit))


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return ticks of a logarithmic axis: each 1, 2 and 5, or powers of ten where those are many.

    The values may be a little within the outermost ticks.
    """
    for steps in ((1, 2, 5), (1,)):
        ticks = [float(f"{n}e{k}") for k in range(-6, 16) for n in steps]
        found = [tick for tick in ticks if low * 0.9 <= tick <= high * 1.1]
        if len(found) <= most:
            break
    return found


def si(value: float) -> str:
    """Return a number as 30M or 1.5G."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"


def spread(places: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Move places apart to at least ``gap``, no further than needed; returned in given order."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved: dict[int, float] = {}
    before = low - gap
    for i in order:
        moved[i] = before = max(places[i], before + gap)
    after = high + gap
    for i in reversed(order):
        moved[i] = after = min(moved[i], after - gap)
    return [moved[i] for i in range(len(places))]


def label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float = LABEL_GAP
) -> None:
    """Name lines at the right of the axes, moved apart where needed.

    Args:
        axes: whose scales and limits are final.
        ends: per line the last point, x and y, its name and its colour.
        gap: between two names, as a share of the axes' height.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    points = [to_axes.transform((x, y)) for x, y, _, _ in ends]
    places = spread([y for _, y in points], gap, 0.0, 1.0)
    for (x, y), place, (_, _, name, color) in zip(points, places, ends, strict=True):
        axes.plot(
            (x, 1.01, 1.03), (y, place, place),
            color=color, lw=0.8, alpha=0.6, transform=axes.transAxes, clip_on=False, zorder=1,
        )  # fmt: skip
        axes.text(
            1.04, place, name, color=color, size=9.2, va="center", transform=axes.transAxes
        )  # fmt: skip
