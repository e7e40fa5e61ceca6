"""Writes measured figures into the README: ``python tests/support/readme_page.py``.

The README's figures come from committed result files and nowhere else; a test holds them equal.
"""

from __future__ import annotations

import bench_package  # noqa: F401
import written_pages

from bench import ROOT, pages
from bench.results import Ratio, Results, load
from bench.tables import figure

README = ROOT / "README.md"
CPU_RESULTS = ROOT / "bench" / "results" / "cpu-2core" / "results.json"

CPU_ROWS = (
    ("torch_compat.AdamW", "torch AdamW fused", "gpt2-30M", "fp32"),
    ("AdamW", "torch AdamW foreach", "gpt2-30M", "fp32"),
    ("Adafactor T5", "transformers Adafactor T5", "gpt2-30M", "fp32"),
    ("Adafactor", "transformers Adafactor", "gpt2-124M", "fp32"),
    ("Adafactor T5", "transformers Adafactor T5", "gpt2-124M", "fp32"),
    ("torch_compat.AdamW", "torch AdamW fused", "tiny-1000", "fp32"),
    ("torch_compat.Adafactor", "torch Adafactor", "gpt2-30M", "fp32"),
    ("Adafactor T5", "transformers Adafactor T5", "gpt2-30M", "bf16"),
    ("AdamW", "torch AdamW foreach", "gpt2-30M", "bf16"),
    ("torch_compat.AdamW", "torch AdamW fused", "gpt2-30M", "bf16"),
    ("torch_compat.Adafactor", "torch Adafactor", "gpt2-30M", "bf16"),
)
"""The ratios that the README shows besides the worst ones: the keys of `results.Ratio`."""


def cpu_ratios(results: Results) -> list[Ratio]:
    """Return `CPU_ROWS`, and of each optimizer and dtype the worst ratio of all that were measured.

    Raises:
        ValueError: a row of `CPU_ROWS` was not measured.
    """
    measured = {ratio.key: ratio for ratio in results.ratios}
    missing = [", ".join(key) for key in CPU_ROWS if key not in measured]
    if missing:
        raise ValueError(f"the results lack {'; '.join(missing)}: measure again with those lists")
    worst: dict[tuple[str, str], Ratio] = {}
    for ratio in sorted(results.ratios, key=lambda ratio: ratio.ratio):
        worst.setdefault((ratio.ours, ratio.dtype), ratio)
    keys = dict.fromkeys((*CPU_ROWS, *(ratio.key for ratio in worst.values())))
    return [measured[key] for key in keys]


def cpu_table(results: Results) -> str:
    ratios, machine = cpu_ratios(results), results.machine
    rows = []
    for ratio in ratios:
        low, high = (figure(quartile, 3) for quartile in ratio.ratio_quartiles)
        times = (f"{_digits(ms)} ms" for ms in (ratio.baseline_ms, ratio.ours_ms))
        goal = ""
        if ratio.goal is not None:
            goal = f"{ratio.goal:g}, {'met' if ratio.ratio >= ratio.goal else 'missed'}"
        names = (f"`{ratio.ours}`", ratio.baseline, ratio.dtype, ratio.shapes)
        rows.append((*names, *times, f"{_digits(ratio.ratio)} [{low}, {high}]", goal))
    head = ("", "instead of", "dtype", "shapes", "before", "after", "ratio", "goal")
    return (
        f"{machine.cpu}, {machine.threads} threads, torch {machine.torch}; "
        f"{min(ratio.rounds for ratio in ratios)} steps of each or more. The ratio is that of the "
        "times; in brackets are the quartiles over the steps, pair by pair.\n\n"
        + pages.markdown(head, rows)
    )


def _digits(value: float) -> str:
    """Return three digits, zeros too, or all before the point where there are more."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:#.3g}".removesuffix(".")


TABLES = {"cpu": lambda: cpu_table(load(CPU_RESULTS))}


def main(arguments: list[str] | None = None) -> None:
    written_pages.rewrite(README, TABLES, __doc__, arguments)


if __name__ == "__main__":
    main()
