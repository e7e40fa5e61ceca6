"""The page that gpu-check writes, for a reader who can't log in to that machine any more."""

from pathlib import Path

import pandas as pd

from bench.goals import GOALS
from bench.pages import markdown, render
from bench.results import Results, read
from bench.tables import figure, tables
from tools.gpu_check.stages import CUT, PASSED, RUNNING, SKIPPED, Entry, Record

SHOWN = {"goals": 40, "ratios, in turns": 24, "not measured": 30}
SHOWN_FAILURES = 4  # per stage


def failures(record: Record, results: Path) -> list[str]:
    """Return a line for each reason to fail: stages that failed, figures below their floors."""
    lines = [
        f"{name}: {entry.status}{': ' + entry.reason if entry.reason else ''}"
        for name, entry in record.stages.items()
        if entry.failure
    ]
    figures = read(results)
    for check in figures.checks if figures else ():
        if not check.above_floor:
            value, floor = figure(check.value, 3), figure(check.floor, 3)
            lines.append(f"below its floor: {check.name}: {value} {check.unit} ({floor})")
    return lines


def page(record: Record, results: Path) -> str:
    """Return the page in Markdown, made from summary.md.jinja."""
    figures, stages = read(results) or Results(machine=None), record.stages
    built = stages["build"].details.get("whole_seconds") if "build" in stages else None
    figures.checks += [GOALS["build"].check(built)] if built else []
    shown = tables(figures)
    if "goals" in shown:
        shown["goals"] = _worst(shown["goals"])
    if "ratios, in turns" in shown:
        shown["ratios, in turns"] = shown["ratios, in turns"].sort_values("ratio")
    unreached = [(n, e.reason) for n, e in stages.items() if e.status in (CUT, SKIPPED, RUNNING)]
    unreached += [(item.what, item.why) for item in figures.missing]
    if unreached:
        shown["not measured"] = pd.DataFrame(unreached, columns=["what", "why"])
    return render(
        Path(__file__).with_name("summary.md.jinja"),
        environment=stages.get("environment"),
        figures=figures,
        failed=failures(record, results),
        unfinished=[name for name, e in stages.items() if e.status in (CUT, RUNNING)],
        stages=[_stage_row(name, entry) for name, entry in stages.items()],
        tables={title: shown[title] for title in SHOWN if title in shown},
        most=SHOWN,
        faults=[fault for name, entry in stages.items() if (fault := _fault(name, entry))],
        markdown=markdown,
        figure=figure,
    )


def _worst(goals: pd.DataFrame) -> pd.DataFrame:
    """Return the worst case of each goal and verdict.

    The text after a goal's name tells its cases apart. Every ratio is kept.
    """
    of = goals.name.str.partition(": ")[0]
    lower_is_better = of.map(lambda name: name in GOALS and GOALS[name].at_most)
    share = (goals.value / goals.goal).where(~lower_is_better, goals.goal / goals.value)
    cases = goals.assign(of=of, share=share).sort_values("share").groupby(["of", "verdict"])
    worst = cases.head(1).assign(count=lambda found: cases.share.transform("size")[found.index])
    several = worst["count"].map(lambda count: f" (the worst of {count})" if count > 1 else "")
    order = worst.verdict.map(["BELOW FLOOR", "missed", "met"].index)
    worst = worst.assign(name=worst.name + several, order=order).sort_values(["order", "share"])
    return worst[list(goals)]


def _stage_row(name: str, entry: Entry) -> tuple[str, ...]:
    details, facts = entry.details, []
    if "passed" in details:
        facts.append(", ".join(f"{details[w]} {w}" for w in ("passed", "failed", "skipped")))
        facts += [f"skipped: {reason}" for reason in list(details["skip_reasons"])[:1]]
    if details.get("whole_seconds"):
        facts.append(f"a whole build took {details['whole_seconds']:.0f} s")
    if details.get("extension_bytes"):
        facts.append(f"extension of {details['extension_bytes'] / 1e6:.2f} MB")
    if details.get("errors") is not None:
        facts.append(f"{details['errors']} errors")
    facts += [*details.get("notes", []), *filter(None, [entry.reason])]
    status = entry.status if entry.status == PASSED else f"**{entry.status}**"
    return name, status, f"{entry.seconds:.0f}", "; ".join(facts)


def _fault(name: str, entry: Entry) -> tuple[str, list[str]] | None:
    """Return a heading, and the lines that tell most about why a stage failed or was cut."""
    if not entry.failure and entry.status != CUT:
        return None
    shown = entry.details.get("failures", [])[:SHOWN_FAILURES]
    lines = [line for f in shown for line in (f["test"], *(f"    {text}" for text in f["text"]))]
    lines = lines or entry.details.get("lines") or entry.tail
    heading = f"{name}: {'first failures' if shown else 'last output'}"
    return (heading, [line[:160] for line in lines]) if lines else None
