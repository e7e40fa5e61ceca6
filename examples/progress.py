"""What the terminal shows: a bar per optimizer, or plain lines where there is no terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from training import History, Run, Watcher

RECENT = 20  # steps behind the loss and the time that are shown


def recent_loss(history: History) -> float:
    """The training loss, steady enough to read."""
    return fmean(history.train[-RECENT:])


class Bar(Watcher):
    """A row of a live progress display."""

    def __init__(self, progress: Progress, key: str, run: Run) -> None:
        self.progress = progress
        self.task = progress.add_task(
            key, total=run.settings.steps, completed=run.step, loss="loss", lr="lr"
        )
        if run.step:
            self.stepped(run.history)

    def stepped(self, history: History) -> None:
        """Advance."""
        self.progress.update(
            self.task,
            completed=len(history.train),
            loss=f"loss {recent_loss(history):.3f}",
            lr=f"lr {history.lr[-1]:.1e}",
        )

    def evaluated(self, history: History) -> None:
        """The table and the picture have the validation loss."""


class Lines(Watcher):
    """A line per evaluation, for logs."""

    def __init__(self, console: Console, key: str, run: Run) -> None:
        self.console, self.key, self.steps = console, key, run.settings.steps
        if run.done:
            self.write(f"all {self.steps} steps already done")
        elif run.step:
            self.write(f"resumed at step {run.step} of {self.steps}")

    def write(self, text: str) -> None:
        """One line, whatever the width."""
        self.console.print(f"{self.key:<18}{text}", soft_wrap=True, highlight=False)

    def stepped(self, history: History) -> None:
        """Wait for the next evaluation."""

    def evaluated(self, history: History) -> None:
        """Say everything there is."""
        step, validation = history.validation[-1]
        text = f"step {step:>{len(str(self.steps))}}/{self.steps}  val {validation:.3f}"
        if history.train:
            text += (
                f"  train {recent_loss(history):.3f}  lr {history.lr[-1]:.2e}"
                f"  {median(history.step_ms[-RECENT:]):.1f} ms/step"
            )
        self.write(text)


class Display:
    """Makes the watcher of each run: bars in a live `progress`, lines without one."""

    def __init__(self, console: Console, progress: Progress | None) -> None:
        self.console, self.progress = console, progress

    def watch(self, key: str, run: Run) -> Watcher:
        """A watcher for one run."""
        if self.progress:
            return Bar(self.progress, key, run)
        return Lines(self.console, key, run)


@contextmanager
def display(console: Console) -> Iterator[Display]:
    """A live display on a terminal, lines anywhere else."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield Display(console, None)
        return
    columns = (
        TextColumn("{task.description:<17}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]:<10}"),
        TextColumn("{task.fields[lr]:<10}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, expand=True) as progress:
        yield Display(console, progress)


def summary_table(curves: dict[str, Any], final_steps: int) -> Table:
    """The result of every run of `curves`, the content of curves.json."""
    caption = f"train loss: mean of the last {final_steps} steps; ms: medians"
    table = Table(caption=caption, box=None, pad_edge=False)
    table.add_column("optimizer")
    headings = "train\nloss", "val\nloss", "ms per\nstep", "optimizer\nms", "state bytes\n/ param"
    for heading in headings:
        table.add_column(heading, justify="right")
    for run in curves["runs"].values():
        row = run["summary"]
        table.add_row(
            run["label"],
            f"{row['train_loss']:.3f}",
            f"{row['validation_loss']:.3f}",
            f"{row['ms_per_step']:.1f}",
            f"{row['optimizer_ms_per_step']:.2f}",
            f"{row['state_bytes_per_parameter']:.2f}",
        )
    return table
