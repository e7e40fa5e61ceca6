"""Writes the figures of ``bench.precision`` into docs/precision.md: ``bench/precision_table.py``.

The page's figures come from the committed result file and nowhere else; a test holds them equal.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "precision.md"
RESULTS = ROOT / "bench" / "results" / "cpu-2core" / "precision_curves.json"

_BLOCK = re.compile(r"(?<=<!-- training:begin -->\n).*(?=<!-- training:end -->)", re.DOTALL)

Run = dict[str, Any]


def span(results: dict[str, Any], family: str) -> tuple[float, float]:
    """Return the least and the greatest final loss of a family's float32 runs."""
    losses = [run["final_loss"] for run in _of(results, family) if run["dtype"] == "float32"]
    return min(losses), max(losses)


def learns(results: dict[str, Any], run: Run) -> bool:
    """Whether a run ended within the span of the float32 runs of its family."""
    low, high = span(results, run["optimizer"])
    return low <= run["final_loss"] <= high


def same_seed(results: dict[str, Any], run: Run) -> float:
    """Return the final loss of the float32 run on the same batches, from the same weights."""
    return next(
        other["final_loss"]
        for other in _of(results, run["optimizer"])
        if other["dtype"] == "float32" and other["seed"] == run["seed"]
    )


def _of(results: dict[str, Any], family: str) -> list[Run]:
    return [run for run in results["runs"] if run["optimizer"] == family]


def table(results: dict[str, Any]) -> str:
    """Return the Markdown table of a result file, with the sentence above it."""
    settings, machine = results["settings"], results["machine"]
    parts = [
        f"{settings['layers']} layers of width {settings['width']}, {settings['steps']:,} steps of "
        f"{settings['batch']} x {settings['context']} bytes, torch {machine['torch']} on a CPU. "
        "Losses are in nats per byte of held-out files; bytes are per parameter, itself included.",
        "",
        "| run | bytes | final loss | less float32's, same seed | within float32's seeds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for family in dict.fromkeys(run["optimizer"] for run in results["runs"]):
        low, high = span(results, family)
        runs = _of(results, family)
        reference = [run for run in runs if run["dtype"] == "float32"]
        name, size = reference[0]["name"], reference[0]["bytes_per_parameter"]
        parts.append(
            f"| {name}, {len(reference)} seeds | {size:g} | {low:.3f} to {high:.3f} | | |"
        )
        for run in runs:
            if run["dtype"] != "float32":
                difference = run["final_loss"] - same_seed(results, run)
                verdict = "yes" if learns(results, run) else "**no**"
                parts.append(
                    f"| {run['name']} | {run['bytes_per_parameter']:g} | {run['final_loss']:.3f} "
                    f"| {difference:+.3f} | {verdict} |"
                )
    return "\n".join(parts) + "\n"


def with_table(page: str, results: dict[str, Any]) -> str:
    """Return ``page`` with the table of ``results`` in its place."""
    return _BLOCK.sub(lambda _: table(results), page)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(), json.loads(RESULTS.read_text())))
