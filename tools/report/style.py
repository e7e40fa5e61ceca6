"""The look of every picture: style.mplstyle, light or dark, a headline and a footer."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib.style
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.system import Machine

LINES = ("#2f86d6", "#e07b1a", "#0e9c78", "#c65fa0", "#c9a40a", "#8c7be0", "#2aa7c4", "#b0554d")
_PACKAGES = "fused_optim torch optimi transformers torchao bitsandbytes flashoptim apex"
SOURCES = {**dict(zip(_PACKAGES.split(), LINES, strict=True)), "transformer_engine": "#7c8a3a"}
"""The colours of packages, in the order in which pictures show the packages."""

OTHER = "#8a909c"


def sheet(dark: bool = False) -> AbstractContextManager[None]:
    """Return the context in which pictures are drawn and saved."""
    colors = ("#e8eaf0", "#a0a7b4", "#343a46", "#16191f")
    ink, faint, grid, paper = colors if dark else ("#1f2430", "#646b78", "#e5e7eb", "#ffffff")
    themed = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color"), faint)
    themed |= {"figure.facecolor": paper, "axes.facecolor": paper, "grid.color": grid}
    themed |= {"text.color": ink, "ytick.color": ink}
    return matplotlib.style.context([Path(__file__).with_name("style.mplstyle"), themed])


def rank(names: pd.Series, known: Iterable[str]) -> pd.Series:
    """Return the index of each name among the known ones; unknown names come after them."""
    places = {name: place for place, name in enumerate(known)}
    return names.map(places).fillna(len(places))


def muted() -> str:
    """Return the colour of secondary text."""
    return rcParams["axes.labelcolor"]


def new_figure(width: float, body: float, words: tuple[str, str], machine: Machine) -> Figure:
    """Return a figure without a window: headline and subtitle above its body, a footer below.

    Args:
        width: in inches.
        body: the height in inches of the part in which axes are drawn.
        words: headline and subtitle.
        machine: the machine on which the figures were measured.
    """
    height = body + 1.15
    figure = Figure(figsize=(width, height))
    rect = (0.1 / width, 0.4 / height, 1 - 0.2 / width, body / height)
    figure.set_layout_engine("constrained", rect=rect, wspace=0.06)
    x = 0.25 / width
    figure.text(x, 1 - 0.18 / height, words[0], size=15, weight="bold", va="top")
    figure.text(x, 1 - 0.5 / height, words[1], size=10, color=muted(), va="top")
    figure.text(x, 0.14 / height, str(machine), size=8.2, color=muted(), va="bottom")
    return figure


def only_grid(axes: Axes, along: str) -> None:
    """Keep the grid of one axis, and no line at its ends."""
    axes.grid(False, axis="y" if along == "x" else "x")
    axes.spines["left" if along == "y" else "bottom"].set_visible(False)


def logarithmic(
    axes: Axes, name: str, low: float, high: float, text: Callable[[float], str] | None = None
) -> None:
    """Make the x or y axis logarithmic, with ticks at 1, 2 and 5 or only at powers of ten."""
    axis, text = getattr(axes, f"{name}axis"), text or si
    axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def si(value: float) -> str:
    """Return a number as 30M or 1.5G."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"
