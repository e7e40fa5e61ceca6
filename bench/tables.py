"""What was measured as tables, the same for terminals and for pages."""

from typing import Any

import pandas as pd

from bench.results import Ratio, Results, Row

_COLUMNS = {
    "steps": "optimizer runs_on shapes dtype tensors parameters ms quartiles host_us "
    "traffic_bytes_per_parameter gb_per_s copy_percent launches",
    "ratios, in turns": "ours baseline kind shapes dtype parameters baseline_ms ours_ms ratio "
    "quartiles host_ratio goal verdict",
    "memory, each in a process of its own": "optimizer source shapes dtype "
    "state_bytes_per_parameter bytes_per_parameter transient",
    "goals": "name value unit goal floor verdict",
    "not measured": "what why",
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


def tables(results: Results) -> dict[str, pd.DataFrame]:
    """Return what was measured by title, without columns of which nothing is known."""
    names = ("rows", "ratios", "memory", "checks", "missing")
    rows, ratios, memory, checks, missing = map(results.frame, names)
    rows["runs_on"] = rows.backend.fillna(rows.source)
    rows["quartiles"] = rows.ms_quartiles.map(_range)
    ratios["quartiles"] = ratios.ratio_quartiles.map(_range)
    ratios["verdict"] = [verdict(ratio.check()) for ratio in results.ratios]
    memory["transient"] = memory.transient_bytes / 2**20
    checks["verdict"] = [verdict(check) for check in results.checks]
    checks = checks.sort_values(["above_floor", "met"], kind="stable")
    found = (rows, ratios, memory, checks, missing)
    return {
        title: table[columns.split()].dropna(axis=1, how="all").rename(columns=_NAMES)
        for (title, columns), table in zip(_COLUMNS.items(), found, strict=True)
        if len(table)
    }


def verdict(check: Any) -> str | None:
    if check is None:
        return None
    return ("met" if check.met else "missed") if check.above_floor else "BELOW FLOOR"


def compared(base: Results, now: Results) -> dict[str, pd.DataFrame]:
    """Return what both measured, row by row; a ratio above 1 says that it became faster."""
    found = {}
    for title, name, cls, value in (
        ("steps against the base", "rows", Row, "ms"),
        ("ratios against the base", "ratios", Ratio, "ratio"),
    ):
        key = list(cls.KEY)
        old, new = (results.frame(name)[[*key, value]] for results in (base, now))
        both = old.rename(columns={value: f"base {value}"}).merge(new, on=key)
        if value == "ms":
            both["base / now"] = both["base ms"] / both.ms
        else:
            both["now / base"] = both.ratio / both["base ratio"]
        found[title] = both
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
