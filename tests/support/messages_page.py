"""Writes every message of the package into a page: ``python tests/support/messages_page.py``.

The messages are those that the syntax trees of ``fused_optim`` and ``triton_kernels`` show: what is
raised, what warns, and the reasons that other messages end with.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import written_pages

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "messages.md"

ROOMS = {
    "optimizers/state_dicts": "Loading and saving",
    "optimizers": "Constructing, stepping, and what surrounds a step",
    "schedules": "Schedules",
    "precision": "Parameters, gradients, state and precision",
    "plan": "Collecting a step, and CUDA graphs",
    "distributed": "Parameters that are spread over processes",
    "backends": "Backends",
    "triton_kernels": "The Triton backend",
}
"""Headings of the page by the folder of a message."""

REASONS = ("fault", "missing", "why_not", "reason", "remedy", "advice")
"""Words in the names of functions that return the end of a message, and no message."""


class Message(NamedTuple):
    """One message: its kind, its text with ``…`` for what is filled in, and where it comes from."""

    kind: str
    text: str
    place: str


def template(node: ast.expr | None, names: dict[str, ast.expr]) -> str:
    """Return the text of an expression; ``…`` is what is known only when it is evaluated."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part, names) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left, names) + template(node.right, names)
    if isinstance(node, ast.FormattedValue):
        return template(node.value, names)
    if isinstance(node, (ast.Name, ast.Attribute)):
        name = node.id if isinstance(node, ast.Name) else node.attr
        if name.lstrip("_").isupper() and name in names:
            return template(names[name], names)
    return "…"


def constants() -> dict[str, ast.expr]:
    """Return the strings in capitals of the package's modules, which messages share, by name."""
    found = {}
    for path in sources():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                if not isinstance(node.value, (ast.Dict, ast.Tuple, ast.Call)):
                    found[node.targets[0].id] = node.value
    return found


def sources() -> list[Path]:
    return sorted([*ROOT.glob("fused_optim/**/*.py"), *ROOT.glob("triton_kernels/*.py")])


def within(tree: ast.AST, place: str = "") -> Iterator[tuple[ast.AST, str]]:
    """Yield every node with the dotted name of the function or class that it is in."""
    for node in ast.iter_child_nodes(tree):
        here = place
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            here = f"{place}.{node.name}" if place else node.name
        yield node, here
        yield from within(node, here)


def message(node: ast.AST, place: str, names: dict[str, ast.expr]) -> tuple[str, str] | None:
    """Return the kind and the text of the message that a node is, or None if it is none."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
        return ast.unparse(node.exc.func), template(node.exc.args[0], names)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
        categories = [ast.unparse(a) for a in node.args[1:]]
        return (categories or ["UserWarning"])[0], template(node.args[0], names)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "agreement.check":
        return "RuntimeError", template(node.args[-1], names).replace("%s", "…")
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("what", "fault"):
        text = template(node.value, names)
        return ("reason", text) if " " in text else None
    function = place.rpartition(".")[2]
    if isinstance(node, ast.Return) and any(word in function for word in REASONS):
        text = template(node.value, names)
        return ("reason", text) if " " in text else None
    return None


def messages() -> list[Message]:
    """Return the messages in the order of files and lines, each once."""
    names, found = constants(), {}
    for path in sources():
        file = path.relative_to(ROOT).as_posix().removeprefix("fused_optim/")
        for node, place in within(ast.parse(path.read_text())):
            one = message(node, place, names)
            if one is not None and one[1].strip("… "):
                found[Message(*one, f"{file}: {place}")] = None
    return list(found)


def texts() -> list[str]:
    """Return all strings of the package, with a NUL where an f-string fills something in."""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", None) for part in node.values)
                found.append("".join(p if isinstance(p, str) else "\0" for p in parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def table() -> str:
    """Return a table of the messages of each room, under its heading."""
    every, lines, shown = messages(), [], set()
    for room, heading in ROOMS.items():
        rows = [one for one in every if one.place.startswith(f"{room}/") and one not in shown]
        shown |= set(rows)
        lines += [f"\n## {heading}\n", "| kind | message | from |", "| --- | --- | --- |"]
        for kind, text, place in rows:
            text = " ".join(text.split()).replace("|", "\\|")
            quotes = "``" if "`" in text else "`"
            pad = " " * (quotes == "``")
            lines.append(f"| {kind} | {quotes}{pad}{text}{pad}{quotes} | `{place}` |")
    left = [one for one in every if one not in shown and one.place.partition(":")[0] != "errors.py"]
    if left:
        raise ValueError(f"no heading for {left}")
    return "\n".join(lines).lstrip() + "\n"


TABLES = {"messages": table}


def main(arguments: list[str] | None = None) -> None:
    written_pages.rewrite(PAGE, TABLES, __doc__, arguments)


if __name__ == "__main__":
    main()
