"""Writes measured figures into the README: ``python -m bench.report``.

The README's figures come from committed result files and nowhere else; a test holds them equal.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CPU_RESULTS = ROOT / "bench" / "results" / "cpu-2core" / "compare.json"

_CPU_BLOCK = re.compile(r"(?<=<!-- cpu:begin -->\n).*(?=<!-- cpu:end -->)", re.DOTALL)


def cpu_table(results: dict[str, Any]) -> str:
    """Return the Markdown table of a result file of ``bench.compare``."""
    machine = results["machine"]
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}; medians of "
        f"{results['rounds']} steps each, quartiles of the ratio in brackets.",
        "",
        "| | instead of | shapes | before | after | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["rows"]:
        low, high = row["ratio_quartiles"]
        times = f"{row['baseline_ms']:.0f} ms | {row['ours_ms']:.0f} ms"
        ratio = f"{row['ratio']:.2f} [{low:.2f}, {high:.2f}]"
        names = f"`{row['ours']}` | {row['baseline']} | {row['shapes']}"
        lines.append(f"| {names} | {times} | {ratio} |")
    return "\n".join(lines) + "\n"


def with_figures(readme: str, results: dict[str, Any]) -> str:
    """Return ``readme`` with the table of ``results`` in its place."""
    return _CPU_BLOCK.sub(lambda _: cpu_table(results), readme)


if __name__ == "__main__":
    README.write_text(with_figures(README.read_text(), json.loads(CPU_RESULTS.read_text())))
