"""The figures of several runs in one result file, for what takes more than one call."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.results import Machine, Results, load


def read(path: Path) -> Results | None:
    """Return the figures of a file, or None where there are none to be read."""
    try:
        return load(path)
    except (OSError, ValueError):
        return None


def merged(old: Results | None, new: Results | None) -> Results | None:
    """Return the figures of both; where both have one, the new one's.

    Figures of another device are not mixed with these: the new ones stand alone then.
    """
    if old is None or new is None or _device(old.machine) != _device(new.machine):
        return new or old
    known = {item.what for item in new.missing} | {str(ratio) for ratio in new.ratios}
    missing = [item for item in old.missing if item.what not in known]
    return Results(
        machine=new.machine,
        copy=new.copy or old.copy,
        rows=_union((row.key, row) for row in (*old.rows, *new.rows)),
        ratios=_union(((*r.key, r.kind), r) for r in (*old.ratios, *new.ratios)),
        memory=_union((each.key, each) for each in (*old.memory, *new.memory)),
        checks=_union((check.name, check) for check in (*old.checks, *new.checks)),
        missing=[*missing, *new.missing],
    )


def _union(items: Iterable[tuple[Any, Any]]) -> list[Any]:
    return list(dict(items).values())


def _device(machine: Machine) -> tuple[str, str | None, int]:
    if machine.device == "cpu":
        return machine.device, machine.cpu, machine.threads
    return machine.device, machine.gpu, 0
