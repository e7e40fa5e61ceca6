"""An entry of PTX, made into the instructions that executor.cpp runs.

A call becomes the function's body with registers of its own; what it is handed and returns are
registers too. A register, or a constant, is a row: its value in each of 32 lanes, and for a
predicate a mask.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

import numpy as np

from ptx import machine
from ptx.text import WIDTHS, Function, Module

LANES = 32
SPECIALS = ("%tid.x", "%ctaid.x", "%nctaid.x", "%ntid.x")
SPACES = {"param": 0, "global": 1, "shared": 2, "": 3}
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


class UnknownInstruction(ValueError):
    """The executor has no such instruction; it is to be added there."""


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
    return _Assembler(module).program(module.function(entry))


class _Assembler:
    def __init__(self, module: Module) -> None:
        self.module = module
        self.records: list[tuple] = []
        self.lines: dict[int, str] = {}
        self.rows: dict[str, tuple[int, int]] = {}  # place and width by a register's name
        self.size = 0
        self.constants = bytearray()
        self.constant_places: dict[tuple[bytes, int], int] = {}
        self.labels: dict[str, int] = {}
        self.jumps: list[tuple[int, str]] = []
        self.shared: dict[str, int] = {}  # places of the arrays that the entry uses
        self.shared_bytes = 0
        self.used_bytes: int | None = None
        self.entry: Function
        self.inlined = 0

    def program(self, entry: Function) -> Program:
        self.numbers = machine.operations()
        self.entry = entry
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
        operands = _split(rest)
        special = getattr(self, f"_{name}", None)
        if special is not None:
            special(parts, operands)
        else:
            self._plain(name, parts, operands)

    def _only(self, parts: list[str], *known: str) -> None:
        """Refuse a modifier that would change what an instruction does."""
        if unknown := [part for part in parts if part not in known and part not in WIDTHS]:
            raise UnknownInstruction(f"line {self.line}: .{unknown[0]}: {self.lines[self.line]}")

    # Operands -------------------------------------------------------------------------------

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
        key = value, len(value)
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

    # Instructions with operands of one width -----------------------------------------------

    def _plain(self, name: str, parts: list[str], operands: list[str]) -> None:
        kind = parts[-1]
        width = WIDTHS[kind]
        parts = [part for part in parts if part not in ("rn", "uni")]
        result, sources = operands[0], operands[1:]
        widths = [width] * len(sources)
        to_width = width
        if "wide" in parts:
            to_width = 2 * width
            widths[2:] = [to_width] * len(widths[2:])
        if name in ("shl", "shr", "bfe"):
            widths[1:] = [4] * len(widths[1:])
        if name == "setp":
            to_width = 0
            parts = [{"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(p, p) for p in parts]
        if name == "selp":
            widths[2] = 0
        unsigned = {"add", "sub", "and", "or", "xor", "not", "neg", "shl", "selp"}
        low = name in ("mul", "mad") and parts[0] == "lo"
        equal = name == "setp" and parts[0] in ("eq", "ne")
        if (
            kind[0] in "us"
            and "x" not in kind
            and (name in unsigned or low or equal)
            or name == "selp"
        ):
            parts[-1] = f"b{8 * width}"
        if name == "not" and kind == "pred":
            name, sources, widths = "andnot", ["1", *sources], [0, 0]
        places = [self._source(s, w) for s, w in zip(sources, widths, strict=True)]
        place, found = self._row(result)
        if found != to_width:
            raise UnknownInstruction(f"line {self.line}: {result} has {found} bytes")
        self._emit(".".join((name, *parts)), [place], places)

    def _cvt(self, parts: list[str], operands: list[str]) -> None:
        self._only(parts, "rn", "rzi")
        to, source = (part for part in parts if part in WIDTHS)
        rounded = ["rzi"] if "rzi" in parts else []
        integers = to[0] in "us" and source[0] in "us"
        width = max(WIDTHS[source], 2)
        places = [self._narrowed(operand, width) for operand in operands[1:]]
        if integers and max(WIDTHS[to], 2) == width and "8" not in (to[1:], source[1:]):
            self._emit(f"mov.b{8 * width}", [self._row(operands[0])[0]], places)
            return
        if integers:  # how the source is read decides what is put before it
            extends = WIDTHS[to] > WIDTHS[source] or WIDTHS[source] == 1
            sign = source[0] if extends else "u"
            to, source = sign + to[1:], sign + source[1:]
        self._emit(".".join(("cvt", *rounded, to, source)), [self._row(operands[0])[0]], places)

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

    def _mov(self, parts: list[str], operands: list[str]) -> None:
        self._only(parts)
        kind, (to, source) = parts[-1], operands
        width = WIDTHS[kind]
        if to.startswith("{"):
            low, high = (-1 if each == "_" else self._row(each)[0] for each in _vector(to))
            self._emit(f"unpack.b{8 * width}", [low, high], [self._source(source, width)])
        elif source.startswith("{"):
            halves = [self._source(each, width // 2) for each in _vector(source)]
            self._emit(f"pack.b{8 * width}", [self._row(to)[0]], halves)
        elif kind == "pred":
            every = self._source("1", 0)
            self._emit("and.pred", [self._row(to)[0]], [self._source(source, 0), every])
        else:
            self._emit(f"mov.b{8 * width}", [self._row(to)[0]], [self._source(source, width)])

    def _cvta(self, parts: list[str], operands: list[str]) -> None:
        self._only(parts, "to", "global", "shared")
        to, source = self._row(operands[0])[0], self._source(operands[1], 8)
        if "shared" not in parts:
            self._emit("mov.b64", [to], [source])
            return
        window = self._source(str(1 << 62), 8)
        self._emit("sub.b64" if "to" in parts else "add.b64", [to], [source, window])

    # Memory --------------------------------------------------------------------------------

    def _address(self, operand: str, space: str) -> tuple[int, int]:
        """Return an address's row and what is added to it."""
        inside = operand.strip("[] ")
        base, _, offset = re.sub(r"\s", "", inside).partition("+")
        number = int(offset or 0)
        if base.startswith("%"):
            return self._narrowed(base, 4 if space == "shared" else 8), number
        return self._source(base, 4 if space == "shared" else 8), number

    def _transfer(self, name: str, parts: list[str], values: str, address: str) -> None:
        space = next((part for part in parts if part in ("global", "shared", "param")), "")
        self._only(parts, "global", "shared", "param", "nc", "cg", "v2", "v4")
        kind, registers = parts[-1], _vector(values)
        if space == "param" and not (name == "ld" and self._is_entry_parameter(address)):
            self._handed(name, kind, registers, address)
            return
        width = WIDTHS[kind]
        unused = 0
        if self.used_bytes is not None:
            for number in range(len(registers)):
                if not self.used_bytes >> number * width & (1 << width) - 1:
                    registers[number] = "_"
                    unused |= 1 << number
        rows = [self._row(r)[1] if r.startswith("%") else width for r in registers if r != "_"]
        bits = width | len(registers) << 8 | (kind[0] == "s") << 12 | rows[0] << 13
        bits |= SPACES[space] << 21 | unused << 24
        if space == "param":
            base, _, offset = re.sub(r"[\s\[\]]", "", address).partition("+")
            place, number = -1, self.function.parameters[base] + int(offset or 0)
        else:
            place, number = self._address(address, space)
        if name == "ld":
            to = [-1 if r == "_" else self._row(r)[0] for r in registers]
        else:
            to = [self._source(r, rows[0]) for r in registers]
        self._emit(name, to, [place], immediate=number, detail=bits)

    def _ld(self, parts: list[str], operands: list[str]) -> None:
        self._transfer("ld", parts, operands[0], operands[1])

    def _st(self, parts: list[str], operands: list[str]) -> None:
        self._transfer("st", parts, operands[1], operands[0])

    def _is_entry_parameter(self, address: str) -> bool:
        base = re.sub(r"[\s\[\]]", "", address).partition("+")[0]
        return self.function is self.entry and base in self.entry.parameters

    def _handed(self, name: str, kind: str, registers: list[str], address: str) -> None:
        """Move what a call hands over or returns: a register for each offset."""
        base, _, offset = re.sub(r"[\s\[\]]", "", address).partition("+")
        width = WIDTHS[kind]
        for number, register in enumerate(registers):
            handed = f"{base}+{int(offset or 0) + number * width}"
            if name == "ld":
                place, found = self._row(handed, width)
                target, wide = self._row(register)
            else:
                found = self._row(register)[1] if register.startswith("%") else width
                place, wide = self._source(register, found), found
                target, wide = self._row(handed, wide)
            if found != wide:
                raise UnknownInstruction(f"line {self.line}: a parameter of two widths")
            self._emit(f"mov.b{8 * wide}", [target], [place])

    def _prefetch(self, parts: list[str], operands: list[str]) -> None:
        self._only(parts, "global", "L2")
        place, number = self._address(operands[0], "global")
        self._emit("prefetch", (), [place], immediate=number)

    def _atom(self, parts: list[str], operands: list[str]) -> None:
        self._only(parts, "add", "acq_rel", "relaxed", "gpu", "global")
        if "global" not in parts or "add" not in parts or parts[-1] != "u32":
            raise UnknownInstruction(f"line {self.line}: {self.lines[self.line]}")
        place, number = self._address(operands[1], "global")
        to = [] if operands[0] == "_" else [self._row(operands[0])[0]]
        value = self._source(operands[2], 4)
        ordered = int("acq_rel" in parts)
        self._emit("atom.add", to, [place, value], immediate=number, detail=ordered)

    # Control -------------------------------------------------------------------------------

    def _bra(self, parts: list[str], operands: list[str]) -> None:
        self.jumps.append((self._emit("bra"), self.scope + operands[0]))

    def _ret(self, parts: list[str], operands: list[str]) -> None:
        if self.function is self.entry:
            self._emit("ret")
        else:
            self.jumps.append((self._emit("bra"), self.scope + "end of function"))

    def _bar(self, parts: list[str], operands: list[str]) -> None:
        if parts[0] == "warp":
            self._emit("bar.warp.sync", (), [self._source(operands[0], 4)])
            return
        if operands != ["0"]:
            raise UnknownInstruction(f"line {self.line}: a barrier of a part of a block")
        self._emit("bar.sync")

    def _shfl(self, parts: list[str], operands: list[str]) -> None:
        self._only(parts, "sync", "bfly")
        to = operands[0].partition("|")[0]
        sources = [self._source(each, 4) for each in operands[1:]]
        self._emit(f"shfl.{parts[1]}", [self._row(to)[0]], sources)

    def _redux(self, parts: list[str], operands: list[str]) -> None:
        self._only(parts, "sync", "min", "max")
        sources = [self._source(each, 4) for each in operands[1:]]
        self._emit(f"redux.{parts[1]}.{parts[2]}", [self._row(operands[0])[0]], sources)

    def _matrices(self, name: str, parts: list[str], values: str, address: str) -> None:
        self._only(parts, "sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared")
        place, number = self._address(address, "shared")
        to = [self._row(each)[0] for each in _vector(values)]
        name += ".trans" * ("trans" in parts)
        self._emit(name, to, [place], immediate=number, detail=len(to))

    def _ldmatrix(self, parts: list[str], operands: list[str]) -> None:
        self._matrices("ldmatrix", parts, operands[0], operands[1])

    def _stmatrix(self, parts: list[str], operands: list[str]) -> None:
        self._matrices("stmatrix", parts, operands[1], operands[0])

    def _call(self, parts: list[str], operands: list[str]) -> None:
        returned, name, handed = CALL.match(", ".join(operands)).groups()
        callee = self.module.function(name)
        saved = self.scope, self.widths, self.function, self.line
        self.inlined += 1
        scope = f"{self.inlined}:"
        outer = self.scope
        for own, given in zip(callee.parameters, _split(handed or ""), strict=True):
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


def _split(text: str) -> list[str]:
    """Split operands at commas outside of brackets."""
    found, depth, current = [], 0, ""
    for character in text:
        depth += (character in "{[(") - (character in ")]}")
        if character == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += character
    return [*found, current.strip()] if current.strip() else found


def _vector(operand: str) -> list[str]:
    return [each.strip() for each in operand.strip("{} ").split(",")]
