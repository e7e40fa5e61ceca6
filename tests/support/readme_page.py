"""Writes measured figures into README and benchmarks: ``python tests/support/readme_page.py``.

Their figures come from committed result files and nowhere else; a test holds them equal.
"""

from __future__ import annotations

import bench_package  # noqa: F401
import written_pages

from bench import ROOT, pages
from bench.results import Ratio, Results, load
from bench.tables import figure

README = ROOT / "README.md"
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
CPU_RESULTS = ROOT / "bench" / "results" / "cpu-2core" / "results.json"
MACHINES = {
    "CPU, 2 cores": CPU_RESULTS,
    "H200": ROOT / "bench" / "results" / "h200" / "results.json",
}
"""The columns of the README's table, and where their figures come from."""

SPEED_ROWS = (
    ("torch_compat.AdamW", "torch AdamW fused", "fp32"),
    ("torch_compat.AdamW", "torch AdamW fused", "bf16"),
    ("AdamW", "torch AdamW fused", "bf16"),
    ("Adafactor T5", "transformers Adafactor T5", "fp32"),
    ("Adafactor T5 stochastic", "transformers Adafactor T5", "bf16"),
    ("torch_compat.Adafactor", "torch Adafactor", "fp32"),
    ("torch_compat.Adafactor", "torch Adafactor", "bf16"),
)
"""The rows of the README's table: fused baselines, and equal bytes but for the third."""

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
"""The ratios that the page shows besides the worst ones: the keys of `results.Ratio`."""


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


def speed_table(results: dict[str, Results]) -> str:
    """Return the worst and the best ratio of each row on each machine, over all measured lists.

    Raises:
        ValueError: a row was measured on no machine.
    """
    rows = []
    for ours, baseline, dtype in SPEED_ROWS:
        cells = []
        for found in results.values():
            ratios = [
                ratio
                for ratio in found.ratios
                if (ratio.ours, ratio.baseline, ratio.dtype) == (ours, baseline, dtype)
            ]
            cells.append(_range(ratios) if ratios else "")
        if not any(cells):
            raise ValueError(f"the results lack {ours} vs {baseline}, {dtype}")
        rows.append((f"`{ours}`", baseline, dtype, *cells))
    return pages.markdown(("", "instead of", "dtype", *results), rows)


def _range(ratios: list[Ratio]) -> str:
    """Return the worst ratio with its list of shapes and its times, and the best."""
    worst, best = (pick(ratios, key=lambda ratio: ratio.ratio) for pick in (min, max))
    times = f"{_digits(worst.baseline_ms)} → {_digits(worst.ours_ms)} ms"
    return f"{_digits(worst.ratio)} ({worst.shapes}, {times}) to {_digits(best.ratio)}"


def _digits(value: float) -> str:
    """Return three digits, zeros too, or all before the point where there are more."""
    return f"{value:,.0f}" if value >= 999.5 else f"{value:#.3g}".removesuffix(".")


TABLES = {"cpu": lambda: cpu_table(load(CPU_RESULTS))}
README_TABLES = {"speed": lambda: speed_table({k: load(v) for k, v in MACHINES.items()})}


def main(arguments: list[str] | None = None) -> None:
    written_pages.rewrite(README, README_TABLES, __doc__, arguments)
    written_pages.rewrite(BENCHMARKS, TABLES)


if __name__ == "__main__":
    main()
