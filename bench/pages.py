"""The parts of Markdown pages that are written by a command: ``<!-- NAME:begin -->`` to its end."""

from __future__ import annotations

import re


def replaced(page: str, name: str, text: str) -> str:
    """Return ``page`` with ``text`` in the place called ``name``.

    Raises:
        ValueError: the page has no such place, or several.
    """
    place = rf"(?<=<!-- {name}:begin -->\n).*?(?=<!-- {name}:end -->)"
    page, found = re.subn(place, lambda _: text, page, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"the page has {found} places <!-- {name}:begin -->, and needs one")
    return page
