"""Writes into docs/adafactor.md what Adafactor refuses: ``python tests/support/adafactor_page.py``.

Each row is a combination of settings, the reason for refusing it and the message that it raises.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import written_pages

from fused_optim import Adafactor

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adafactor.md"

REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"lr": 1e-3}, "`relative_step=True` is the default and never reads a rate"),
    ({"relative_step": False}, "no rate is left"),
    (
        {"lr": 1e-3, "relative_step": False, "warmup_init": True},
        "`warmup_init` is a part of the relative step",
    ),
    (
        {"lr": float("nan"), "relative_step": False},
        "it would turn every weight into NaN in one step",
    ),
    ({"clip_threshold": None}, "transformers fails at the first step"),
    ({"decay_rate": 0.8}, "a positive exponent makes the decay rate of the statistics negative"),
    ({"beta1": 1.0}, "the moment would never change"),
    ({"eps": 1e-8}, "Adafactor has two, and a single one is AdamW's"),
)


def message(settings: dict[str, Any]) -> str:
    """Return what constructing an Adafactor with these settings raises."""
    try:
        Adafactor([torch.nn.Parameter(torch.ones(2, 2))], **settings)
    except ValueError as error:
        return str(error)
    raise AssertionError(f"Adafactor accepts {settings}")


def table() -> str:
    """Return the table, in the order of `REFUSED`."""
    lines = ["| settings | why | message |", "| --- | --- | --- |"]
    for settings, why in REFUSED:
        written = ", ".join(
            f"{k}=float('nan')" if v != v else f"{k}={v!r}" for k, v in settings.items()
        )
        lines.append(f"| `{written}` | {why} | {message(settings)} |")
    return "\n".join(lines) + "\n"


TABLES = {"refused": table}


def main(arguments: list[str] | None = None) -> None:
    written_pages.rewrite(PAGE, TABLES, __doc__, arguments)


if __name__ == "__main__":
    main()
