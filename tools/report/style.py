"""How every picture looks: style.mplstyle under a light or dark theme, headline and footer."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.results import Machine

LINES = ("#2f86d6", "#e07b1a", "#0e9c78", "#c65fa0", "#c9a40a", "#8c7be0", "#2aa7c4", "#b0554d")
SOURCES = {
    **dict(zip(("fused_optim", "torch", "optimi", "transformers", "torchao"), LINES, strict=False)),
    **dict(zip(("bitsandbytes", "flashoptim", "apex"), LINES[5:], strict=True)),
    "transformer_engine": "#7c8a3a",
}
"""The colours of packages, in the order in which pictures have them."""

OTHER = "#8a909c"


@dataclass(frozen=True)
class Theme:
    """The colours of everything but the data."""

    ink: str
    muted: str
    grid: str
    paper: str

    def context(self) -> AbstractContextManager[None]:
        muted = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color"), self.muted)
        paper = dict.fromkeys(("figure.facecolor", "axes.facecolor"), self.paper)
        colors = {"text.color": self.ink, "ytick.color": self.ink, "grid.color": self.grid}
        sheet = Path(__file__).with_name("style.mplstyle")
        return matplotlib.style.context([sheet, {**muted, **paper, **colors}])


LIGHT = Theme(ink="#1f2430", muted="#646b78", grid="#e5e7eb", paper="#ffffff")
DARK = Theme(ink="#e8eaf0", muted="#a0a7b4", grid="#343a46", paper="#16191f")


def new_figure(width: float, body: float, theme: Theme, words: tuple[str, str, str]) -> Figure:
    """Return a figure, of no window, with a headline, what is shown and a footer around its body.

    Args:
        width: in inches.
        body: the height in inches of what will be drawn.
        theme: its colours.
        words: headline, what is shown, where it is from.
    """
    height = body + 1.15
    figure = Figure(figsize=(width, height))
    rect = (0.1 / width, 0.4 / height, 1 - 0.2 / width, body / height)
    figure.set_layout_engine("constrained", rect=rect, wspace=0.06)
    x = 0.25 / width
    figure.text(x, 1 - 0.18 / height, words[0], size=15, weight="bold", va="top")
    figure.text(x, 1 - 0.5 / height, words[1], size=10, color=theme.muted, va="top")
    figure.text(x, 0.14 / height, words[2], size=8.2, color=theme.muted, va="bottom")
    return figure


def machine_line(machine: Machine) -> str:
    facts = [machine.gpu or f"{machine.cpu}, {machine.threads} threads", f"torch {machine.torch}"]
    facts += [f"Triton {machine.triton}"] if machine.triton and machine.gpu else []
    facts += [f"CUDA {machine.cuda}"] if machine.cuda and machine.gpu else []
    facts += [f"driver {machine.driver}"] if machine.driver else []
    facts += [f"fused_optim {machine.fused_optim} ({machine.commit})", machine.date]
    return "  ·  ".join(facts)


def only_grid(axes: Axes, along: str) -> None:
    """Keep the grid of one axis, and no line at its ends."""
    axes.grid(False, axis="y" if along == "x" else "x")
    axes.spines["left" if along == "y" else "bottom"].set_visible(False)


def logarithmic(
    axes: Axes, name: str, low: float, high: float, text: Callable[[float], str] | None = None
) -> None:
    """Make the x or y axis logarithmic, with ticks at 1, 2 and 5, or at powers of ten alone."""
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
