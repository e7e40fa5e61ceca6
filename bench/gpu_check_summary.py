"""The page that gpu-check leaves: for someone who can't log in to that machine any more."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.goals import GOALS
from bench.gpu_check_record import CUT, PASSED, RUNNING, SKIPPED, Entry, Record

SHOWN_RATIOS = 24
SHOWN_CHECKS = 40
SHOWN_MISSING = 30
VERDICTS = {
    (False, False): "**BELOW THE FLOOR**",
    (False, True): "**BELOW THE FLOOR**",
    (True, False): "above the floor",
    (True, True): "met",
}
"""By whether a figure is above its floor, and meets its goal."""
SHOWN_FAILURES = 4  # of one stage


def load(results: Path) -> dict[str, Any]:
    """Return the figures, with empty lists where nothing was measured."""
    try:
        data = json.loads(results.read_text())
    except (OSError, json.JSONDecodeError):
        data = {}
    return {"machine": {}, **{k: [] for k in ("checks", "ratios", "missing")}, **data}


def failures(record: Record, results: Path) -> list[str]:
    """Return what makes the check fail, a line each: stages, then figures below their floors."""
    lines = [
        f"{name}: {entry.status}{': ' + entry.reason if entry.reason else ''}"
        for name, entry in record.stages.items()
        if entry.failure
    ]
    for check in load(results)["checks"]:
        if not check["above_floor"]:
            value, floor = number(check["value"]), number(check["floor"])
            lines.append(f"below its floor: {check['name']}: {value} {check['unit']} ({floor})")
    return lines


def page(record: Record, results: Path) -> str:
    """Return the page in Markdown."""
    figures = load(results)
    failed = failures(record, results)
    unfinished = [n for n, e in record.stages.items() if e.status in (CUT, RUNNING)]
    verdict = "FAILED" if failed else "nothing has failed"
    if unfinished:
        verdict += f"; not done: {', '.join(unfinished)}"
    parts = [
        f"# gpu-check: {_gpu(record, figures)}",
        _machine(record, figures),
        f"**{verdict}**",
        "\n".join(f"- {line}" for line in failed),
        "## Stages",
        table(("stage", "status", "seconds", "what was found"), map(_stage_row, *_split(record))),
        *_checks([*_build_checks(record), *figures["checks"]]),
        *_ratios(figures["ratios"]),
        *_first_failures(record),
        *_missing(record, figures["missing"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([_cell(c) for c in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None) -> str:
    """Return a figure at the precision a reader needs."""
    if value is None:
        return ""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _split(record: Record) -> tuple[list[str], list[Entry]]:
    return list(record.stages), list(record.stages.values())


def _gpu(record: Record, figures: dict[str, Any]) -> str:
    environment = record.stages.get("environment")
    gpu = (environment.details.get("gpu") or {}) if environment else {}
    return gpu.get("name") or figures["machine"].get("gpu") or "rehearsal on a CPU"


def _machine(record: Record, figures: dict[str, Any]) -> str:
    if "environment" not in record.stages:
        return ""
    entry = record.stages["environment"]
    found, gpu = entry.details, entry.details.get("gpu") or {}
    packages = found.get("packages") or {}
    facts = [entry.date, f"commit {entry.commit}"]
    facts += [f"{name} {packages[name]}" for name in ("torch", "triton") if packages.get(name)]
    facts += [f"CUDA {gpu['cuda']}" if gpu else "", f"driver {found.get('driver')}" if gpu else ""]
    facts += [f"nvcc {found['nvcc'].split()[-1]}" if found.get("nvcc") else "no nvcc"]
    facts += [f"Python {found.get('python')}", f"{found.get('cores')} cores"]
    if gpu:
        facts += [f"{gpu['memory_bytes'] / 2**30:.0f} GiB", f"sm_{gpu['architecture']}"]
    copy = figures.get("copy")
    facts += [f"copy {copy['gb_per_s']:,.0f} GB/s"] if copy else []
    lacking = [name for name, version in packages.items() if version is None]
    return ", ".join(filter(None, facts)) + (f"; lacks {', '.join(lacking)}" if lacking else "")


def _stage_row(name: str, entry: Entry) -> tuple[str, str, str, str]:
    status = entry.status if entry.status == PASSED else f"**{entry.status}**"
    return name, status, f"{entry.seconds:.0f}", _found(name, entry)


def _found(name: str, entry: Entry) -> str:
    details, facts = entry.details, []
    if "passed" in details:
        words = ("passed", "failed", "skipped")
        facts.append(", ".join(f"{details[w]} {w}" for w in words if w in details))
    if details.get("whole_seconds"):
        facts.append(f"a whole build took {details['whole_seconds']:.0f} s")
    if details.get("extension_bytes"):
        facts.append(f"extension of {details['extension_bytes'] / 1e6:.2f} MB")
    if details.get("errors") is not None:
        facts.append(f"{details['errors']} errors")
    facts += details.get("notes", [])
    return "; ".join([*facts, *([entry.reason] if entry.reason else [])])


def _build_checks(record: Record) -> list[dict[str, Any]]:
    """Return the verdict on the time of a build, which no benchmark takes."""
    build = record.stages.get("build")
    seconds = build.details.get("whole_seconds") if build else None
    return [asdict(GOALS["build"].check(seconds))] if seconds else []


def _checks(checks: list[dict[str, Any]]) -> Iterator[str]:
    if not checks:
        return
    order = sorted(checks, key=lambda c: (c["above_floor"], c["met"]))
    yield "## Figures against goals and floors"
    met = sum(check["met"] for check in checks)
    below = sum(not check["above_floor"] for check in checks)
    yield f"{len(checks)} figures: {met} reach their goal, {below} are below their floor."
    rows = []
    for check, count in _collapsed(order)[:SHOWN_CHECKS]:
        figures = (number(check[key]) for key in ("value", "goal", "floor"))
        name = check["name"] + (f" (the worst of {count})" if count > 1 else "")
        rows.append((name, *figures, check["unit"], VERDICTS[_verdict(check)]))
    yield table(("figure", "measured", "goal", "floor", "unit", "verdict"), rows)


def _verdict(check: dict[str, Any]) -> tuple[bool, bool]:
    return check["above_floor"], check["met"]


def _collapsed(checks: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """Return one check, the worst, for all cases of a goal that have the same verdict.

    Cases are told apart by what follows the goal's name; ratios stand for themselves.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for check in checks:
        goal = check["name"].partition(": ")[0]
        key = goal if goal in GOALS else check["name"]
        groups.setdefault((key, _verdict(check)), []).append(check)

    def worst(key: str, group: list[dict[str, Any]]) -> dict[str, Any]:
        high = key in GOALS and GOALS[key].at_most
        return max(group, key=lambda c: c["value"] if high else -c["value"])

    return [(worst(key, group), len(group)) for (key, _), group in groups.items()]


def _ratios(ratios: list[dict[str, Any]]) -> Iterator[str]:
    if not ratios:
        return
    yield "## Ratios, the worst first"
    rows = []
    for ratio in sorted(ratios, key=lambda r: r["ratio"])[:SHOWN_RATIOS]:
        low, high = ratio["ratio_quartiles"]
        measured = f"{ratio['ratio']:.2f} [{low:.2f}, {high:.2f}]"
        times = f"{number(ratio['baseline_ms'])}", f"{number(ratio['ours_ms'])}"
        what = (ratio["ours"], ratio["baseline"], f"{ratio['shapes']} {ratio['dtype']}")
        rows.append((*what, ratio["kind"], *times, measured))
    head = ("ours", "instead of", "shapes", "kind", "before, ms", "after, ms", "ratio")
    yield table(head, rows)
    if len(ratios) > SHOWN_RATIOS:
        yield f"And {len(ratios) - SHOWN_RATIOS} better ones in results.json."


def _first_failures(record: Record) -> Iterator[str]:
    for name, entry in record.stages.items():
        if not entry.failure and entry.status != CUT:
            continue
        shown = entry.details.get("failures", [])[:SHOWN_FAILURES]
        lines = [line for f in shown for line in (f"{f['test']}", *map(_indented, f["text"]))]
        if not lines:
            lines = entry.details.get("lines") or entry.tail
        if lines:
            yield f"## {name}: {'first failures' if shown else 'last output'}"
            yield "```\n" + "\n".join(line[:160] for line in lines) + "\n```"


def _indented(line: str) -> str:
    return f"    {line}"


def _missing(record: Record, missing: list[dict[str, str]]) -> Iterator[str]:
    stages = record.stages.items()
    lines = [f"- {n}: {e.reason}" for n, e in stages if e.status in (CUT, SKIPPED, RUNNING)]
    lines += [f"- {item['what']}: {item['why']}" for item in missing]
    if lines:
        yield "## Not reached, and why"
        more = len(lines) - SHOWN_MISSING
        lines = lines[:SHOWN_MISSING] + (
            [f"- and {more} more, in results.json"] if more > 0 else []
        )
        yield "\n".join(lines)
