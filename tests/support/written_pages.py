"""Parts of pages that a command writes: ``<!-- NAME:begin -->`` to end."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path


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
