"""Writes what GPUs ran into docs/support.md: ``python tests/support/support_page.py``.

The rows are those of ``bench/results/*/stages.json``, which `make gpu-check` leaves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import written_pages

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "support.md"


def found(stage: dict[str, Any]) -> str:
    """Return what a stage counted, and why it did not pass."""
    details = stage["details"]
    counts = [f"{details[k]:,} {k}" for k in ("passed", "failed", "skipped") if details.get(k)]
    if "errors" in details:
        counts.append(f"{details['errors']} errors")
    return ", ".join(filter(None, (*counts, stage["reason"] * ("failed" not in details))))


def gpu_table() -> str:
    """Return a table of the stages of every GPU, in the order in which they first ran."""
    lines = ["| GPU | date | what | result | |", "| --- | --- | --- | --- | --- |"]
    for record in sorted(ROOT.glob("bench/results/*/stages.json")):
        stages = json.loads(record.read_text())["stages"]
        machine = stages["environment"]["details"]
        packages = machine["packages"]
        name = f"{machine['gpu']['name']}, torch {packages['torch']}, Triton {packages['triton']}"
        for stage_name, stage in stages.items():
            if stage_name in ("environment", "build", "report"):
                continue
            result = stage["status"] if stage["status"] == "passed" else f"**{stage['status']}**"
            what = f"`{stage_name}`: {stage['title']}"
            lines.append(f"| {name} | {stage['date'][:10]} | {what} | {result} | {found(stage)} |")
    return "\n".join(lines) + "\n"


TABLES = {"gpu": gpu_table}


def main(arguments: list[str] | None = None) -> None:
    written_pages.rewrite(PAGE, TABLES, __doc__, arguments)


if __name__ == "__main__":
    main()
