"""Registers, constants and addresses of a program of PTX, as rows; and what is emitted for it."""

from __future__ import annotations

import re
import struct
from typing import Any

from ptx import machine
from ptx.text import WIDTHS, Function, Module

LANES = 32
SPECIALS = ("%tid.x", "%ctaid.x", "%nctaid.x", "%ntid.x")
_Row = tuple[int, int]  # place and width; a predicate's width is 0


class UnknownInstruction(ValueError):
    """The executor has no such instruction; it is to be added there."""


class Operands:
    """The part of an assembler that finds operands.

    A register, or a constant, is a row: its value in each of 32 lanes, and for a predicate a mask.
    """

    def __init__(self, module: Module, entry: Function) -> None:
        self.module, self.entry, self.function = module, entry, entry
        self.numbers = machine.operations()
        self.records: list[tuple[Any, ...]] = []
        self.lines: dict[int, str] = {}
        self.rows: dict[str, _Row] = {}  # by a register's name
        self.size = 0
        self.constants = bytearray()
        self.constant_places: dict[bytes, int] = {}
        self.labels: dict[str, int] = {}
        self.jumps: list[tuple[int, str]] = []
        self.shared: dict[str, int] = {}  # places of the arrays that the entry uses
        self.shared_bytes = 0
        self.used_bytes: int | None = None  # of the next load, where the compiler says so
        self.line, self.scope = 0, ""
        self.widths: dict[str, int] = {}
        self.guard = (-1, 0)

    def _only(self, parts: list[str], *known: str) -> None:
        """Refuse a modifier that would change what an instruction does."""
        if unknown := [part for part in parts if part not in known and part not in WIDTHS]:
            raise UnknownInstruction(f"line {self.line}: .{unknown[0]}: {self.lines[self.line]}")

    def _row(self, name: str, width: int | None = None) -> tuple[int, int]:
        """Return a register's place and width."""
        key = name if name in SPECIALS else self.scope + name
        if key not in self.rows:
            if name in SPECIALS:
                width = 4
            elif width is None:
                width = self.widths.get(name, self.widths.get(re.sub(r"\d+$", "", name)))
            if width is None:
                raise UnknownInstruction(f"line {self.line}: no register {name}")
            self.rows[key] = self.size, width
            self.size += -(-max(width * LANES, 4) // 64) * 64
        return self.rows[key]

    def _constant(self, value: bytes) -> int:
        key = value
        if key not in self.constant_places:
            self.constant_places[key] = -1 - len(self.constants)
            self.constants += value * LANES
        return self.constant_places[key]

    def _source(self, operand: str, width: int) -> int:
        """Return the place of an operand's row, of this width; 0 is a predicate."""
        if operand.startswith("%"):
            place, found = self._row(operand)
            if found != width:
                raise UnknownInstruction(
                    f"line {self.line}: {operand} has {found} bytes where {width} are read"
                )
            return place
        if found := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})", operand):
            number = int(found[1] or found[2], 16)
        elif operand in self.module.shared:
            number = self._shared_at(operand)
        else:
            number = int(operand.rstrip("U"), 0)
        if width == 0:
            return self._constant(struct.pack("<I", 0xFFFFFFFF if number else 0))
        return self._constant((number & (1 << 8 * width) - 1).to_bytes(width, "little"))

    def _shared_at(self, name: str) -> int:
        if name not in self.shared:
            unit, size = self.module.shared[name]
            self.shared[name] = -(-self.shared_bytes // unit) * unit
            self.shared_bytes = self.shared[name] + size
        return self.shared[name]

    def _emit(self, op: str, to=(), source=(), *, immediate=0, detail=0) -> int:
        if op not in self.numbers:
            raise UnknownInstruction(f"line {self.line}: the executor has no {op}")
        to = [*to, *[-1] * (4 - len(to))]
        source = [*source, *[-1] * (4 - len(source))]
        guard, negated = self.guard
        self.records.append(
            (self.numbers[op], guard, negated, 0, to, source, immediate, detail, self.line)
        )
        return len(self.records) - 1

    def _narrowed(self, operand: str, width: int) -> int:
        """Return the row of an operand's low bytes; a conversion may read a wider register."""
        if not operand.startswith("%") or self._row(operand)[1] <= width:
            return self._source(operand, width)
        source, wide = self._row(operand)
        place, _ = self._row(f"{operand} in {width} bytes", width)
        guard, self.guard = self.guard, (-1, 0)
        self._emit(f"cvt.u{8 * width}.u{8 * wide}", [place], [source])
        self.guard = guard
        return place

    def _address(self, operand: str, space: str) -> tuple[int, int]:
        """Return an address's row and what is added to it."""
        inside = operand.strip("[] ")
        base, _, offset = re.sub(r"\s", "", inside).partition("+")
        number = int(offset or 0)
        if base.startswith("%"):
            return self._narrowed(base, 4 if space == "shared" else 8), number
        return self._source(base, 4 if space == "shared" else 8), number
