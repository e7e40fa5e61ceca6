"""How errors call what they are about."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Begin the message of a ValueError with what it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(where + str(error)) from None


def place(group: dict[str, Any], group_index: int, index: int) -> str:
    """Return how errors call a parameter: by number, group and, where it has one, name."""
    names = group.get("param_names")
    name = f" ({names[index]!r})" if names and index < len(names) else ""
    return f"parameter {index}{name} of group {group_index}"


def class_name(cls: type) -> str:
    """Return what users call an optimizer class: two classes may differ by their module alone."""
    prefix = "torch_compat." if cls.__module__.endswith("torch_compat") else ""
    return prefix + cls.__name__
