"""What was measured as tables, the same for terminals and for pages."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from bench.results import Ratio, Results, Row

_COLUMNS = {
    "steps": (
        *("optimizer", "runs_on", "shapes", "dtype", "tensors", "parameters", "ms", "quartiles"),
        *("host_us", "traffic_bytes_per_parameter", "gb_per_s", "copy_percent", "launches"),
    ),
    "ratios, in turns": (
        *("ours", "baseline", "kind", "shapes", "dtype", "parameters", "baseline_ms", "ours_ms"),
        *("ratio", "quartiles", "host_ratio", "goal", "verdict"),
    ),
    "memory, each in a process of its own": (
        *("optimizer", "source", "shapes", "dtype"),
        *("state_bytes_per_parameter", "bytes_per_parameter", "transient"),
    ),
    "goals": ("name", "value", "unit", "goal", "floor", "verdict"),
    "not measured": ("what", "why"),
}
_NAMES = {
    "runs_on": "runs on",
    "host_us": "host us",
    "traffic_bytes_per_parameter": "B/param",
    "gb_per_s": "GB/s",
    "copy_percent": "% of copy",
    "baseline_ms": "baseline ms",
    "ours_ms": "ours ms",
    "host_ratio": "host",
    "source": "package",
    "state_bytes_per_parameter": "state B/param",
    "bytes_per_parameter": "with parameter",
    "transient": "step takes, MiB",
}
"""What readers see of columns whose keys are not plain words."""


def frame(items: Iterable[Any]) -> pd.DataFrame:
    """Return dataclasses as a table; what is None is missing."""
    return pd.DataFrame([vars(item) for item in items])


def tables(results: Results) -> dict[str, pd.DataFrame]:
    """Return what was measured by title, without columns of which nothing is known."""
    rows, ratios, memory, checks, missing = (
        frame(items)
        for items in (results.rows, results.ratios, results.memory, results.checks, results.missing)
    )
    if len(rows):
        rows["runs_on"] = rows.backend.fillna(rows.source)
        rows["quartiles"] = rows.ms_quartiles.map(_range)
    if len(ratios):
        ratios["quartiles"] = ratios.ratio_quartiles.map(_range)
        verdicts = [ratio.check() for ratio in results.ratios]
        ratios["verdict"] = [check and verdict(check.met, check.above_floor) for check in verdicts]
    if len(memory):
        memory["transient"] = memory.transient_bytes / 2**20
    if len(checks):
        checks["verdict"] = [verdict(c.met, c.above_floor) for c in results.checks]
        checks = checks.sort_values(["above_floor", "met"], kind="stable")
    found = zip(_COLUMNS.items(), (rows, ratios, memory, checks, missing), strict=True)
    return {
        title: table[list(columns)].dropna(axis=1, how="all").rename(columns=_NAMES)
        for (title, columns), table in found
        if len(table)
    }


def verdict(met: bool, above_floor: bool) -> str:
    return ("met" if met else "missed") if above_floor else "BELOW FLOOR"


def compared(base: Results, now: Results) -> dict[str, pd.DataFrame]:
    """Return what both measured, row by row; a ratio above 1 says that it became faster."""
    found = {}
    for name, cls, value in (("rows", Row, "ms"), ("ratios", Ratio, "ratio")):
        key, what = list(cls.KEY), "steps" if cls is Row else "ratios"
        old, new = (frame(getattr(results, name)) for results in (base, now))
        if len(old) and len(new):
            both = old[[*key, value]].merge(new[[*key, value]], on=key, suffixes=("_base", ""))
            base_over_now = both[f"{value}_base"] / both[value]
            faster = base_over_now if value == "ms" else 1 / base_over_now
            both["base / now" if value == "ms" else "now / base"] = faster
            found[f"{what} against the base"] = both.rename(
                columns={f"{value}_base": f"base {value}"}
            )
    return {title: table for title, table in found.items() if len(table)}


def figure(value: Any, digits: int = 4) -> str:
    """Return a figure of so many significant digits, a dash for none, and text as it is."""
    if isinstance(value, str):
        return value
    if value is None or pd.isna(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10**digits - 0.5 else f"{value:.{digits}g}"


def _range(quartiles: list[float]) -> str:
    return " - ".join(figure(q, 3) for q in quartiles)
