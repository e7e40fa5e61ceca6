"""The pictures of a result file, each None where nothing fits it."""

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from matplotlib.figure import Figure

from bench.results import Results
from tools.report import curves, lines, memory, speedups
from tools.report.style import Theme

PICTURES: dict[str, tuple[str, Callable[[Results, Theme], Figure | None]]] = {
    "roofline": ("Share of the memory bandwidth that a step uses", lines.roofline),
    "speedups": ("Speed against the optimizers in use", speedups.speedups),
    "memory": ("Bytes per parameter", memory.memory),
    "scaling": ("Cost by number of tensors and of parameters", lines.scaling),
}
"""Every picture by its file's name, with what it shows."""


def draw_all(results: Results, losses: dict[str, Any] | None, theme: Theme) -> dict[str, Figure]:
    """Return the pictures that can be drawn; ``losses`` are what ``bench.precision`` keeps."""
    with theme.context():
        drawn = {name: draw(results, theme) for name, (_, draw) in PICTURES.items()}
        drawn["curves"] = losses and curves.curves(losses, theme)
    return {name: figure for name, figure in drawn.items() if figure}


def save(figure: Figure, file: Path | IO[bytes], theme: Theme, kind: str = "png") -> None:
    with theme.context():
        figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})
