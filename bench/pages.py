"""Markdown tables, and the parts of pages that a command writes: ``<!-- NAME:begin -->`` to end."""

import argparse
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


def markdown(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table; bars and line breaks within cells are escaped."""
    head = list(head)
    cells = [[str(c).replace("|", "\\|").replace("\n", " ") for c in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "".join(f"|{'|'.join(f' {c} ' if c else ' ' for c in line)}|\n" for line in lines)


def filled(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Return ``page`` with each table in the place of its name, of which there must be one."""
    for name, table in tables.items():
        place = rf"(?<=<!-- {name}:begin -->\n).*?(?=<!-- {name}:end -->)"
        text = table()
        page, found = re.subn(place, lambda _, text=text: text, page, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"the page has {found} places <!-- {name}:begin -->, and needs one")
    return page


def rewrite(
    page: Path,
    tables: Mapping[str, Callable[[], str]],
    what: str | None = None,
    arguments: list[str] | None = None,
) -> None:
    """Bring a page's tables up to date, as the command that ``what`` describes."""
    if what is not None:
        argparse.ArgumentParser(description=what).parse_args(arguments)
    page.write_text(filled(page.read_text(), tables))
