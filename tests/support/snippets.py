"""The Python of a page: its fenced blocks, and what a comment before a block says about it.

A page's blocks are one program: they run in order, and each sees the names of those before it.
Blocks within HTML comments, which no reader sees, make what the page takes for granted. A comment
in the line before a block says what else there is to know; it may be the line in which a comment
around the block begins, without its end:

``<!-- raises NAME -->``: the block raises that exception, with the text of the page's next block.
``<!-- prints -->``: the block prints the page's next block, and nothing else.
``<!-- two processes -->``: the page's blocks of this mark are a program of their own, for
processes that form a group.
``<!-- gpu -->``: the block runs where there is a GPU, and is compiled elsewhere.
``<!-- needs NAME -->``: from this block on, the page needs that package.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

MARKS = ("raises", "prints", "two processes", "gpu", "needs")
_BLOCK = re.compile(
    r"(?:^[ ]*<!--[ ](?P<mark>[^>\n]+?)(?:[ ]-->)?\n)?"
    r"^(?P<indent>[ ]*)```python\n(?P<code>.*?)^(?P=indent)```$"
    r"(?:\s*^[ ]*```(?:text)?\n(?P<output>.*?)^[ ]*```$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Snippet:
    """A block of a page's Python."""

    code: str
    line: int  # of the block's first line of code
    mark: str  # what the comment before the block says, or ""
    output: str  # the text of the block that follows at once, or ""


def of(page: Path) -> list[Snippet]:
    """Return the page's blocks of Python.

    Raises:
        ValueError: a comment before a block begins with none of `MARKS`.
    """
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        mark = match["mark"] or ""
        if mark and not mark.startswith(MARKS):
            raise ValueError(f"{page.name}: {mark!r} before a block is none of {', '.join(MARKS)}")
        line = text.count("\n", 0, match.start("code")) + 1
        output = textwrap.dedent(match["output"] or "")
        found.append(Snippet(textwrap.dedent(match["code"]), line, mark, output))
    return found


def program(snippets: list[Snippet]) -> str:
    """Return blocks as one program whose lines have the numbers that they have in the page."""
    lines: list[str] = []
    for snippet in snippets:
        lines += [""] * (snippet.line - 1 - len(lines))
        lines += snippet.code.splitlines()
    return "\n".join(lines) + "\n"
