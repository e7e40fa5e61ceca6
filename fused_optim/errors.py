"""The names by which errors call parameters, groups and classes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Begin the message of a ValueError with the name of its subject."""
    try:
        yield
    except ValueError as error:
        raise ValueError(where + str(error)) from None


def place(group: dict[str, Any], group_index: int, index: int) -> str:
    """Return the words by which errors call a parameter: its number, group and name, if any."""
    names = group.get("param_names")
    name = f" ({names[index]!r})" if names and index < len(names) else ""
    return f"parameter {index}{name} of group {group_index}"


def class_name(cls: type) -> str:
    """Return an optimizer class's name, with its module where another class has the same name."""
    prefix = "torch_compat." if cls.__module__.endswith("torch_compat") else ""
    return prefix + cls.__name__
