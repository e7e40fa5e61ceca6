"""Tables and progress on the terminal: rich where it is installed, plain text elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence

from bench.results import Check, Machine, Memory, Missing, Ratio, Results, Row

try:
    import rich.console
    import rich.progress
    import rich.table
except ImportError:  # a machine with a GPU and without network may lack it
    rich = None

_WIDTH_OF_A_FILE = 160


class Display:
    """Prints results."""

    def __init__(self) -> None:
        self._console = None
        if rich is not None:
            width = None if sys.stdout.isatty() else _WIDTH_OF_A_FILE
            self._console = rich.console.Console(width=width, highlight=False)

    def say(self, text: str) -> None:
        """Print a line."""
        if self._console is None:
            print(text, flush=True)
        else:
            self._console.print(text, markup=False)

    @contextlib.contextmanager
    def progress(self, total: int) -> Iterator[Callable[[str], None]]:
        """Show how far a run is; yields a function to call with what comes next."""
        done = 0
        if self._console is None or not self._console.is_terminal:

            def plain(what: str) -> None:
                nonlocal done
                done += 1
                self.say(f"[{done}/{total}] {what}")

            yield plain
            return
        columns = rich.progress.Progress.get_default_columns()
        with rich.progress.Progress(
            *columns, rich.progress.TimeElapsedColumn(), console=self._console, transient=True
        ) as bar:
            task = bar.add_task("", total=total)

            def advance(what: str) -> None:
                nonlocal done
                bar.update(task, completed=done, description=what)
                done += 1

            yield advance

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table; columns whose cells are figures are aligned to the right."""
        if not rows:
            return
        if self._console is None:
            widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
            self.say(f"\n{title}")
            for row in (header, *rows):
                cells = (c.ljust(w) for c, w in zip(row, widths, strict=True))
                self.say("  ".join(cells).rstrip())
            return
        table = rich.table.Table(title=title, title_justify="left", box=None, pad_edge=False)
        for index, name in enumerate(header):
            numeric = all(row[index][:1] in "0123456789-" for row in rows)
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(_escape, row))
        self._console.print()
        self._console.print(table)

    def results(self, results: Results) -> None:
        """Print all that was measured."""
        self.table("steps", _ROW_HEADER, [_row(row) for row in results.rows])
        self.table("ratios, in turns", _RATIO_HEADER, [_ratio(r) for r in results.ratios])
        self.table("memory, each in a process of its own", _MEMORY_HEADER, _memory(results.memory))
        self.table("goals", _CHECK_HEADER, [_check(check) for check in results.checks])
        self.table("not measured", ("what", "why"), [_missing(m) for m in results.missing])


def header(machine: Machine) -> str:
    """Return the lines that name the machine, its versions and the commit."""
    device = machine.cpu
    if machine.device == "cuda":
        memory = (machine.memory_bytes or 0) / 2**30
        device = f"{machine.gpu}, {machine.multiprocessors} multiprocessors, {memory:.0f} GiB"
    versions = [("torch", machine.torch), ("triton", machine.triton), ("CUDA", machine.cuda)]
    versions += [("driver", machine.driver), ("Python", machine.python), *machine.peers.items()]
    return (
        f"{device}; {machine.cores} cores, {machine.threads} threads\n"
        f"fused_optim {machine.fused_optim} at {machine.commit}, {machine.date}; "
        + ", ".join(f"{name} {version}" for name, version in versions if version)
    )


_ROW_HEADER = ("optimizer", "backend", "shapes", "dtype", "ms", "quartiles", "host us", "B/param")
_ROW_HEADER += ("GB/s", "% of copy", "launches")
_RATIO_HEADER = ("ours", "baseline", "kind", "shapes", "dtype", "baseline ms", "ours ms", "ratio")
_RATIO_HEADER += ("quartiles", "host", "goal", "")
_MEMORY_HEADER = ("optimizer", "shapes", "dtype", "state B/param", "with parameter", "step takes")
_CHECK_HEADER = ("goal", "value", "goal", "floor", "")


def figure(value: float | None, digits: int = 4) -> str:
    """Return a figure of so many significant digits, or a dash for none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10**digits - 0.5 else f"{value:.{digits}g}"


def _row(row: Row) -> tuple[str, ...]:
    return (
        row.optimizer,
        row.backend or row.source,
        row.shapes,
        row.dtype,
        figure(row.ms),
        " - ".join(map(figure, row.ms_quartiles)),
        figure(row.host_us),
        figure(row.traffic_bytes_per_parameter),
        figure(row.gb_per_s),
        figure(row.copy_percent, 3),
        figure(row.launches),
    )


def _ratio(ratio: Ratio) -> tuple[str, ...]:
    missed = ratio.floor is not None and ratio.ratio < ratio.floor
    return (
        ratio.ours,
        ratio.baseline,
        ratio.kind,
        ratio.shapes,
        ratio.dtype,
        figure(ratio.baseline_ms),
        figure(ratio.ours_ms),
        figure(ratio.ratio, 3),
        " - ".join(figure(q, 3) for q in ratio.ratio_quartiles),
        figure(ratio.host_ratio, 3),
        figure(ratio.goal),
        "BELOW FLOOR" if missed else "",
    )


def _memory(rows: Sequence[Memory]) -> list[tuple[str, ...]]:
    return [
        (
            m.optimizer,
            m.shapes,
            m.dtype,
            figure(m.state_bytes_per_parameter),
            figure(m.bytes_per_parameter),
            "-" if m.transient_bytes is None else f"{m.transient_bytes / 2**20:,.1f} MiB",
        )
        for m in rows
    ]


def _check(check: Check) -> tuple[str, ...]:
    verdict = "met" if check.met else "missed" if check.above_floor else "BELOW FLOOR"
    bounds = (figure(check.goal), figure(check.floor))
    return (check.name, f"{figure(check.value)} {check.unit}", *bounds, verdict)


def _missing(missing: Missing) -> tuple[str, str]:
    return (missing.what, missing.why)


def _escape(cell: str) -> str:
    return cell.replace("[", r"\[")
