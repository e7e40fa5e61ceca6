"""The figures of several runs in one result file, for what takes more than one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.results import Machine, Memory, Ratio, Results, load


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
    if old is None or new is None:
        return new or old
    if _device(old.machine) != _device(new.machine):
        return new
    missed = {item.what for item in new.missing}
    measured = {_ratio_key(r) for r in new.ratios}
    return Results(
        machine=new.machine,
        copy=new.copy or old.copy,
        rows=_union(old.rows, new.rows, lambda row: row.key),
        ratios=_union(old.ratios, new.ratios, _ratio_key),
        memory=_union(old.memory, new.memory, _memory_key),
        checks=_union(old.checks, new.checks, lambda check: check.name),
        missing=[
            *(m for m in old.missing if m.what not in missed and not _names(m.what, measured)),
            *new.missing,
        ],
    )


def _device(machine: Machine) -> tuple[str, str | None, int]:
    if machine.device == "cpu":
        return machine.device, machine.cpu, machine.threads
    return machine.device, machine.gpu, 0


def _union(old: Iterable[Any], new: Iterable[Any], key: Callable[[Any], Any]) -> list[Any]:
    return list({**{key(item): item for item in old}, **{key(item): item for item in new}}.values())


def _ratio_key(ratio: Ratio) -> tuple[str, ...]:
    return (*ratio.key, ratio.kind)


def _memory_key(memory: Memory) -> tuple[str, ...]:
    return (memory.optimizer, memory.shapes, memory.dtype)


def _names(what: str, ratios: set[tuple[str, ...]]) -> bool:
    """Return whether something that was missed before has been measured since."""
    return any(what == f"{r[0]} vs {r[1]}, {r[2]}, {r[3]}" for r in ratios)
