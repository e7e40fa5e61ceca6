"""The page that gpu-check leaves: for someone who can't log in to that machine any more."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from bench.goals import GOALS
from bench.pages import markdown
from tools.gpu_check.record import CUT, PASSED, RUNNING, SKIPPED, Entry, Record, read_json

SHOWN_RATIOS = 24
SHOWN_CHECKS = 40
SHOWN_MISSING = 30
SHOWN_FAILURES = 4  # of one stage


def load(results: Path) -> dict[str, Any]:
    empty = {"machine": {}, "copy": None, "checks": [], "ratios": [], "missing": []}
    return {**empty, **(read_json(results) or {})}


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
    """Return the page in Markdown: summary.md.jinja, filled in."""
    figures, stages = load(results), record.stages
    checks = [*_build_checks(record), *figures["checks"]]
    checks.sort(key=lambda c: (c["above_floor"], c["met"]))
    ratios = sorted(figures["ratios"], key=lambda r: r["ratio"])
    unreached = [
        f"{n}: {e.reason}" for n, e in stages.items() if e.status in (CUT, SKIPPED, RUNNING)
    ]
    unreached += [f"{item['what']}: {item['why']}" for item in figures["missing"]]
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    made = jinja2.Environment(loader=loader, trim_blocks=True, keep_trailing_newline=True)
    return made.get_template("summary.md.jinja").render(
        environment=stages.get("environment"),
        figures=figures,
        failed=failures(record, results),
        unfinished=[name for name, e in stages.items() if e.status in (CUT, RUNNING)],
        stages=[_stage_row(name, entry) for name, entry in stages.items()],
        checks=checks,
        check_rows=[_check_row(*each) for each in _collapsed(checks)[:SHOWN_CHECKS]],
        ratio_rows=[_ratio_row(ratio) for ratio in ratios[:SHOWN_RATIOS]],
        better=len(ratios) - SHOWN_RATIOS,
        faults=[fault for name, entry in stages.items() if (fault := _fault(name, entry))],
        unreached=unreached[:SHOWN_MISSING],
        more=len(unreached) - SHOWN_MISSING,
        table=markdown,
    )


def number(value: float | None) -> str:
    if value is None:
        return ""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _stage_row(name: str, entry: Entry) -> tuple[str, ...]:
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
    facts += [*details.get("notes", []), *filter(None, [entry.reason])]
    status = entry.status if entry.status == PASSED else f"**{entry.status}**"
    return name, status, f"{entry.seconds:.0f}", "; ".join(facts)


def _build_checks(record: Record) -> list[dict[str, Any]]:
    build = record.stages.get("build")
    seconds = build.details.get("whole_seconds") if build else None
    return [asdict(GOALS["build"].check(seconds))] if seconds else []


def _check_row(check: dict[str, Any], count: int) -> tuple[str, ...]:
    verdict = "met" if check["met"] else "above the floor"
    verdict = verdict if check["above_floor"] else "**BELOW THE FLOOR**"
    name = check["name"] + (f" (the worst of {count})" if count > 1 else "")
    figures = (number(check[key]) for key in ("value", "goal", "floor"))
    return (name, *figures, check["unit"], verdict)


def _collapsed(checks: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """Return one check, the worst, for all cases of a goal that have the same verdict.

    Cases are told apart by what follows the goal's name; ratios stand for themselves.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for check in checks:
        goal = check["name"].partition(": ")[0]
        key = goal if goal in GOALS else check["name"]
        groups.setdefault((key, check["above_floor"], check["met"]), []).append(check)
    found = []
    for (key, *_), group in groups.items():
        group.sort(key=lambda c: c["value"])
        found.append((group[-1 if key in GOALS and GOALS[key].at_most else 0], len(group)))
    return found


def _ratio_row(ratio: dict[str, Any]) -> tuple[str, ...]:
    low, high = ratio["ratio_quartiles"]
    times = (number(ratio["baseline_ms"]), number(ratio["ours_ms"]))
    what = (ratio["ours"], ratio["baseline"], f"{ratio['shapes']} {ratio['dtype']}", ratio["kind"])
    return (*what, *times, f"{ratio['ratio']:.2f} [{low:.2f}, {high:.2f}]")


def _fault(name: str, entry: Entry) -> tuple[str, list[str]] | None:
    """Return a heading and the lines that say most of why a stage failed or was cut."""
    if not entry.failure and entry.status != CUT:
        return None
    shown = entry.details.get("failures", [])[:SHOWN_FAILURES]
    lines = [line for f in shown for line in (f["test"], *(f"    {text}" for text in f["text"]))]
    lines = lines or entry.details.get("lines") or entry.tail
    heading = f"{name}: {'first failures' if shown else 'last output'}"
    return (heading, [line[:160] for line in lines]) if lines else None
