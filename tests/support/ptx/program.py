"""An entry of PTX, made into the instructions that executor.cpp runs.

A call becomes the function's body with registers of its own; what it is handed and returns are
registers too. A register, or a constant, is a row: its value in each of 32 lanes, and for a
predicate a mask.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from ptx.instructions import Instructions, split
from ptx.operands import SPECIALS
from ptx.text import WIDTHS, Function, Module

USED_BYTES = re.compile(r'^\.pragma "used_bytes_mask (\d+)"')
GUARD = re.compile(r"^@(!?)(%\w+)\s+")
CALL = re.compile(r"^(?:\((\w+)\)\s*,\s*)?([$\w]+)\s*(?:,\s*\(([^)]*)\))?$")
RECORD = np.dtype(
    [
        *(("op", "i4"), ("guard", "i4"), ("negated", "i4"), ("target", "i4")),
        *(("to", "i4", 4), ("from", "i4", 4), ("immediate", "i8")),
        *(("detail", "i4"), ("line", "i4")),
    ]
)
"""Instruction of machine.h."""
assert RECORD.itemsize == 64


@dataclass
class Program:
    """What executor.cpp runs."""

    name: str
    code: np.ndarray
    constants: bytes
    register_bytes: int
    specials: list[int]
    parameter_bytes: int
    shared_bytes: int
    lines: dict[int, str] = field(repr=False)


def assemble(module: Module, entry: str) -> Program:
    """Return an entry of a module, ready to run.

    Raises:
        UnknownInstruction: it has an instruction, or a modifier of one, that is not known.
    """
    return _Assembler(module, module.function(entry)).program()


class _Assembler(Instructions):
    inlined = 0

    def program(self) -> Program:
        entry = self.entry
        self._body(entry, "")
        self.guard = (-1, 0)
        self._emit("ret")
        code = np.zeros(len(self.records), RECORD)
        for at, record in enumerate(self.records):
            code[at] = record
        for at, label in self.jumps:
            code[at]["target"] = self.labels[label]
        specials = [self.rows[name][0] if name in self.rows else -1 for name in SPECIALS]
        return Program(
            entry.name,
            code,
            bytes(self.constants),
            self.size,
            specials,
            entry.parameter_bytes,
            self.shared_bytes,
            self.lines,
        )

    def _body(self, function: Function, scope: str) -> None:
        widths: dict[str, int] = {}
        for line, text in function.statements:
            self.lines[line] = text
            self.line, self.scope, self.widths = line, scope, widths
            self.guard = (-1, 0)
            self.function = function
            if text.endswith(":"):
                self.labels[scope + text[:-1]] = len(self.records)
            elif text.startswith(".reg"):
                kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", text).groups()
                for name in names.split(","):
                    widths[re.sub(r"<\d+>$", "", name.strip())] = WIDTHS[kind]
            elif text.startswith(".param"):  # a call's, whose name an earlier one may have had
                name = re.match(r".*?([$\w]+)(?:\[\d+\])?$", text)[1]
                for key in [key for key in self.rows if key.startswith(f"{scope}{name}+")]:
                    del self.rows[key]
            elif used := USED_BYTES.match(text):
                self.used_bytes = int(used[1])
            elif not text.startswith("."):
                self._statement(text)
                self.used_bytes = None
        self.labels[scope + "end of function"] = len(self.records)

    def _statement(self, text: str) -> None:
        if guard := GUARD.match(text):
            self.guard = self._row(guard[2])[0], int(guard[1] == "!")
            text = text[guard.end() :]
        opcode, _, rest = text.partition(" ")
        name, *parts = opcode.split(".")
        operands = split(rest)
        special = getattr(self, f"_{name}", None)
        if special is not None:
            special(parts, operands)
        else:
            self._plain(name, parts, operands)

    def _call(self, parts: list[str], operands: list[str]) -> None:
        returned, name, handed = CALL.match(", ".join(operands)).groups()
        callee = self.module.function(name)
        saved = self.scope, self.widths, self.function, self.line
        self.inlined += 1
        scope = f"{self.inlined}:"
        outer = self.scope
        for own, given in zip(callee.parameters, split(handed or ""), strict=True):
            for key in [k for k in self.rows if k.startswith(f"{outer}{given}+")]:
                self.rows[f"{scope}{own}+{key.rpartition('+')[2]}"] = self.rows[key]
        if returned:
            for offset in (0, 4, 8, 12):
                key = f"{outer}{returned}+{offset}"
                if key in self.rows:
                    self.rows[f"{scope}{callee.returned}+{offset}"] = self.rows[key]
        self._body(callee, scope)
        self.scope, self.widths, self.function, self.line = saved
        if returned:
            for key in [k for k in self.rows if k.startswith(f"{scope}{callee.returned}+")]:
                self.rows[f"{outer}{returned}+{key.rpartition('+')[2]}"] = self.rows[key]
