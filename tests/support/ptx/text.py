"""PTX as text: a module's functions, their parameters and statements, and its shared arrays."""

from __future__ import annotations

import re
from dataclasses import dataclass

WIDTHS = {"pred": 0, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2}
WIDTHS |= dict.fromkeys(("b32", "u32", "s32", "f32", "f16x2", "s16x2"), 4)
WIDTHS |= dict.fromkeys(("b64", "u64", "s64", "f64"), 8)
"""Bytes of a value of each type; a predicate is a bit."""
IGNORED = re.compile(r'^[ \t]*(?://|\.(?:loc|file)\b|\.pragma "nounroll").*$', re.M)
LABEL = re.compile(r"^([$\w]+):")


@dataclass
class Function:
    """A function's or an entry's text, as statements with their lines."""

    name: str
    parameters: dict[str, int]  # offsets
    parameter_bytes: int
    returned: str | None
    statements: list[tuple[int, str]]


class Module:
    """The text of a module."""

    def __init__(self, text: str) -> None:
        self.text = IGNORED.sub("", text)
        header = re.compile(r"^(?:\.(?:visible|weak|extern) )*\.(func|entry)\b", re.M)
        self._places: dict[str, tuple[int, int, bool]] = {}
        for found in header.finditer(self.text):
            head = re.compile(r"[{;]").search(self.text, found.end())
            if head[0] == ";":
                continue
            name = re.search(r"([$\w]+)\s*\(", self._without_returned(found.end(), head.start()))
            self._places[name[1]] = found.end(), head.start(), found[1] == "entry"
        self.shared: dict[str, tuple[int, int]] = {}  # alignment and bytes of each array
        pattern = r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([$\w]+)(?:\[(\d*)\])?\s*;"
        for align, kind, name, count in re.findall(pattern, self.text):
            unit = int(align or WIDTHS[kind])
            # An array without a length is dynamic: the launch says how long it is.
            dynamic = f"{name}[]" in self.text
            self.shared[name] = unit, 0 if dynamic else WIDTHS[kind] * int(count or 1)

    @property
    def entries(self) -> list[str]:
        return [name for name, (_, _, is_entry) in self._places.items() if is_entry]

    def entry(self, *parts: str) -> str:
        """Return the only entry whose name has all these parts."""
        found = [name for name in self.entries if all(part in name for part in parts)]
        if len(found) != 1:
            raise KeyError(f"{parts} are in the names of {len(found)} entries: {found}")
        return found[0]

    def function(self, name: str) -> Function:
        begin, opened, _ = self._places[name]
        head = self.text[begin:opened]
        returned = re.match(r"\s*\(\.param\s+\.\w+\s+([$\w]+)\)", head)
        parameters, at = {}, 0
        listed = self._without_returned(begin, opened)
        pattern = (
            r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)[^,)]*?\s([$\w]+)(?:\[(\d+)\])?\s*(?:,|\))"
        )
        for align, kind, parameter, count in re.findall(pattern, listed):
            size = WIDTHS[kind] * int(count or 1)
            unit = int(align or WIDTHS[kind])
            at = -(-at // unit) * unit
            parameters[parameter], at = at, at + size
        return Function(name, parameters, at, returned and returned[1], self._statements(opened))

    def _without_returned(self, begin: int, end: int) -> str:
        return re.sub(r"^\s*\(\.param[^)]*\)", "", self.text[begin:end])

    def _statements(self, opened: int) -> list[tuple[int, str]]:
        """Return the statements of a body, without its braces, labels on their own."""
        depth, at = 0, opened
        statements, first = [], opened + 1
        line = self.text.count("\n", 0, opened) + 1

        def keep(end: int, line: int) -> None:
            text = " ".join(re.sub(r"//[^\n]*", "", self.text[first:end]).split())
            while label := LABEL.match(text):
                statements.append((line, label[0]))
                text = text[label.end() :].strip()
            if text:
                statements.append((line, text))

        vector = 0  # braces of a vector operand are part of a statement
        for token in re.finditer(r"//[^\n]*|[{};\n]", self.text[opened:]):
            at, what = opened + token.start(), token[0]
            if what == "\n":
                line += 1
            elif what == "{":
                if (
                    self.text[first:at].strip()
                    and depth
                    and not re.match(r"^(?:\s|[$\w]+:|//[^\n]*\n)*$", self.text[first:at])
                ):
                    vector += 1
                else:
                    depth += 1
                    keep(at, line)
                    first = at + 1
            elif what == "}":
                if vector:
                    vector -= 1
                    continue
                keep(at, line)
                depth, first = depth - 1, at + 1
                if depth == 0:
                    break
            elif what == ";":
                keep(at, line)
                first = at + 1
        return statements
