"""Pages: Markdown tables, and templates."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def markdown(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table; bars and line breaks within cells are escaped."""
    head = list(head)
    cells = [[str(c).replace("|", "\\|").replace("\n", " ") for c in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "".join(f"|{'|'.join(f' {c} ' if c else ' ' for c in line)}|\n" for line in lines)


def render(template: Path, **facts: Any) -> str:
    """Return a Jinja template, filled in; what goes into HTML is escaped."""
    import jinja2  # which those who only fill Markdown tables need not have

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=".html" in template.name,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return made.get_template(template.name).render(facts)
