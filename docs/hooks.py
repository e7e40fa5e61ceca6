"""What the site needs beyond mkdocs: files from outside docs/, and formulas in docstrings.

Pages link to files of the repository (``../examples/ddp.py``), so that they can be read where the
repository is. On the site those files lie under ``repository/``, and the links lead there.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = "repository"
CODE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\((?!https?:|#)([^)#\s]+)([^)]*)\)")


def place(src_uri: str) -> str:
    """Return where a page lies in the repository."""
    inside = src_uri.startswith(f"{OUTSIDE}/")
    return src_uri.removeprefix(f"{OUTSIDE}/") if inside else f"docs/{src_uri}"


def target(src_uri: str, link: str) -> str | None:
    """Return where a page's link to a file of the repository leads on the site; None: a folder."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(place(src_uri)), link))
    if (ROOT / path).is_dir():
        return None
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{OUTSIDE}/{path}"


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside docs/ that pages link to, and those that such pages link to."""
    waiting = [file for file in files if file.is_documentation_page()]
    while waiting:
        page = waiting.pop()
        for _, link, _ in LINK.findall(CODE.sub("", page.content_string)):
            uri = target(page.src_uri, link)
            outside = uri is not None and uri.startswith(f"{OUTSIDE}/")
            if outside and files.get_file_from_path(uri) is None and (ROOT / place(uri)).is_file():
                file = File.generated(config, uri, abs_src_path=str(ROOT / place(uri)))
                file.inclusion = page.inclusion.NOT_IN_NAV
                files.append(file)
                if file.is_documentation_page():
                    waiting.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links to files of the repository into links to where they lie on the site."""
    uri = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        text, link, rest = match.groups()
        to = target(uri, link)
        if to is None:  # the site has no page for a folder
            return text
        return f"[{text}]({posixpath.relpath(to, posixpath.dirname(uri) or '.')}{rest})"

    prose, code = CODE.split(markdown), CODE.findall(markdown)
    return "".join(
        LINK.sub(moved, text) + block for text, block in zip(prose, [*code, ""], strict=True)
    )


class Docstrings(griffe.Extension):
    """Turns what mkdocs can't read in docstrings into what it can: formulas, which are LaTeX."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite ``.. math::`` blocks, ``:math:`` roles and the heading of examples."""
        if obj.docstring is None:
            return
        text = re.sub(
            r"^( *)\.\. math::\n((?:\1 +.*\n?)+)", _block, obj.docstring.value, flags=re.MULTILINE
        )
        text = re.sub(r":math:`([^`]+)`", lambda match: convert(match[1]), text)
        obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)


def _block(match: re.Match[str]) -> str:
    lines = re.split(r"\\\\", " ".join(match[2].split()))
    formulas = (convert(line.replace("&", "").strip(), display="block") for line in lines)
    return f"\n{match[1]}<div>{''.join(formulas)}</div>\n"
