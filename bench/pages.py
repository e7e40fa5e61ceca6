"""Markdown tables, and the parts of pages that a command writes: ``<!-- NAME:begin -->`` to end."""

import re
from collections.abc import Iterable
from typing import Any


def markdown(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table; bars and line breaks within cells are escaped."""
    head = list(head)
    cells = [[str(c).replace("|", "\\|").replace("\n", " ") for c in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "".join(f"|{'|'.join(f' {c} ' if c else ' ' for c in line)}|\n" for line in lines)


def replaced(page: str, name: str, text: str) -> str:
    """Return ``page`` with ``text`` in the place called ``name``, of which there must be one."""
    place = rf"(?<=<!-- {name}:begin -->\n).*?(?=<!-- {name}:end -->)"
    page, found = re.subn(place, lambda _: text, page, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"the page has {found} places <!-- {name}:begin -->, and needs one")
    return page
