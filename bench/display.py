"""Tables and progress on the terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import pandas as pd
from pandas.api.types import is_numeric_dtype
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table

from bench.tables import figure

_WIDTH_OF_A_FILE = 180


class Display:
    def __init__(self) -> None:
        width = None if sys.stdout.isatty() else _WIDTH_OF_A_FILE
        self._console = Console(width=width, highlight=False)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    @contextlib.contextmanager
    def progress(self, total: int) -> Iterator[Callable[[str], None]]:
        """Show how far a run is; yields a function to call with what comes next.

        A file gets a line for each, so that the log of a run that was killed says where it was.
        """
        if not self._console.is_terminal:
            numbers = iter(range(1, total + 1))
            yield lambda what: self.say(f"[{next(numbers)}/{total}] {what}")
            return
        columns = (*Progress.get_default_columns(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task("", total=total, completed=-1)
            yield lambda what: bar.update(task, advance=1, description=what)

    def table(self, title: str, frame: pd.DataFrame) -> None:
        """Print a table, its figures aligned to the right."""
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for name in frame:
            numeric = is_numeric_dtype(frame[name])
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in frame.itertuples(index=False):
            table.add_row(*(escape(figure(cell)) for cell in row))
        self._console.print()
        self._console.print(table)
