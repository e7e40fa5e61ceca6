"""What each kind of PTX's instructions becomes: a method for those that are not plain."""

from __future__ import annotations

import re

from ptx.operands import Operands, UnknownInstruction
from ptx.text import WIDTHS

SPACES = {"param": 0, "global": 1, "shared": 2, "": 3}
"""Space of machine.h."""


class Instructions(Operands):
    """The part of an assembler that knows instructions."""

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


def split(text: str) -> list[str]:
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
