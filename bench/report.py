"""Writes measured figures into the README: ``python -m bench.report``.

The README's figures come from committed result files and nowhere else; a test holds them equal.
"""

from __future__ import annotations

import argparse
import re

from bench import ROOT
from bench.results import Results, load

README = ROOT / "README.md"
CPU_RESULTS = ROOT / "bench" / "results" / "cpu-2core" / "results.json"

CPU_ROWS = (
    ("torch_compat.AdamW", "torch AdamW fused", "gpt2-30M", "fp32"),
    ("AdamW", "torch AdamW foreach", "gpt2-30M", "fp32"),
    ("Adafactor T5", "transformers Adafactor T5", "gpt2-30M", "fp32"),
    ("Adafactor", "transformers Adafactor", "gpt2-124M", "fp32"),
    ("Adafactor T5", "transformers Adafactor T5", "gpt2-124M", "fp32"),
    ("Adafactor", "transformers Adafactor", "gpt2-30M", "fp32"),
    ("torch_compat.AdamW", "torch AdamW fused", "tiny-1000", "fp32"),
    ("torch_compat.Adafactor", "torch Adafactor", "gpt2-30M", "fp32"),
    ("Adafactor T5", "transformers Adafactor T5", "gpt2-30M", "bf16"),
    ("AdamW", "torch AdamW foreach", "gpt2-30M", "bf16"),
    ("torch_compat.AdamW", "torch AdamW foreach", "gpt2-30M", "bf16"),
)
"""The ratios that the README shows, of all that were measured: the keys of `results.Ratio`."""

_CPU_BLOCK = re.compile(r"(?<=<!-- cpu:begin -->\n).*(?=<!-- cpu:end -->)", re.DOTALL)


def cpu_table(results: Results) -> str:
    """Return the README's table of CPU ratios in Markdown.

    Raises:
        ValueError: a row of `CPU_ROWS` was not measured.
    """
    measured = {ratio.key: ratio for ratio in results.ratios}
    missing = [", ".join(key) for key in CPU_ROWS if key not in measured]
    if missing:
        raise ValueError(f"the results lack {'; '.join(missing)}: measure again with those lists")
    ratios = [measured[key] for key in CPU_ROWS]
    machine = results.machine
    lines = [
        f"{machine.cpu}, {machine.threads} threads, torch {machine.torch}; medians of "
        f"{min(ratio.rounds for ratio in ratios)} steps each, quartiles of the ratio in brackets.",
        "",
        "| | instead of | dtype | shapes | before | after | ratio | goal |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for ratio in ratios:
        low, high = ratio.ratio_quartiles
        names = f"`{ratio.ours}` | {ratio.baseline} | {ratio.dtype} | {ratio.shapes}"
        times = f"{ratio.baseline_ms:.0f} ms | {ratio.ours_ms:.0f} ms"
        goal = ""
        if ratio.goal is not None:
            goal = f" {ratio.goal:g}, {'met' if ratio.ratio >= ratio.goal else 'missed'}"
        lines.append(f"| {names} | {times} | {ratio.ratio:.2f} [{low:.2f}, {high:.2f}] |{goal} |")
    return "\n".join(lines) + "\n"


def with_figures(readme: str, results: Results) -> str:
    """Return ``readme`` with the table of ``results`` in its place."""
    return _CPU_BLOCK.sub(lambda _: cpu_table(results), readme)


def main(arguments: list[str] | None = None) -> None:
    """Bring the README up to the committed results."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.report")
    parser.parse_args(arguments)
    README.write_text(with_figures(README.read_text(), load(CPU_RESULTS)))


if __name__ == "__main__":
    main()
