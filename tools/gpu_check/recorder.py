"""Runs pytest and writes what came of each test at once, for a run that may be killed.

``python -m tools.gpu_check.recorder FILE SECONDS [pytest's arguments]`` appends a line of JSON per
test that has ended: its name, its outcome, its seconds and, where it failed, what pytest prints of
it. After so many seconds it ends the session, if that is one process: a sanitizer's verdict comes
with the end of the process that it watches.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # gpu-check reads records where there may be no pytest
    import pytest

SHOWN_FAILURES = 8
SHOWN_LINES = 14


class Recorder:
    """A pytest plugin; under pytest-xdist it is the controller's, which hears of every test."""

    def __init__(self, path: Path, seconds: float):
        self.file = open(path, "w", encoding="utf-8")  # closed with the process
        self.deadline = time.monotonic() + seconds
        self.session: pytest.Session | None = None
        self.broken: set[str] = set()

    def pytest_runtest_logfinish(self) -> None:
        if time.monotonic() > self.deadline and not self.session.shouldstop:
            note = f"{self.session.testscollected} tests, of which not all were reached in time"
            print(json.dumps({"note": note}), file=self.file, flush=True)
            self.session.shouldstop = note

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.write(report, report.duration)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        # Called per worker, too: a module that does not import is written once.
        if report.outcome == "failed" and report.nodeid not in self.broken:
            self.broken.add(report.nodeid)
            self.write(report, 0.0)

    def write(self, report: Any, seconds: float) -> None:
        line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(seconds, 3)}
        if report.outcome == "failed":
            line["text"] = report.longreprtext
        if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
            line["text"] = report.longrepr[-1]
        print(json.dumps(line), file=self.file, flush=True)


def summarise(path: Path) -> dict[str, Any]:
    """Return the counts of a file of records, and the first lines of the first failures."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # the run was killed while it wrote this
            records.append(json.loads(line))
    notes = [record["note"] for record in records if "note" in record]
    records = [record for record in records if "note" not in record]
    counts = Counter(record["outcome"] for record in records)
    failed = [record for record in records if record["outcome"] == "failed"][:SHOWN_FAILURES]
    reasons = Counter(r.get("text", "") for r in records if r["outcome"] == "skipped")
    slowest = sorted(records, key=lambda record: -record["seconds"])[:3]
    return {
        **{outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")},
        "failures": [{"test": r["test"], "text": essence(r.get("text", ""))} for r in failed],
        "skip_reasons": dict(reasons.most_common(6)),
        "notes": notes,
        "slowest": [[record["test"], record["seconds"]] for record in slowest],
    }


def essence(text: str) -> list[str]:
    """Return the lines of a failure that say most: the errors and where they arose."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E ")]
    places = [line for line in lines if not line.startswith(("E ", ">", " ", "_")) and ":" in line]
    return errors[: SHOWN_LINES - 2] + places[-2:] if errors else lines[-SHOWN_LINES:]


def main(arguments: list[str]) -> int:
    import pytest

    recorder = Recorder(Path(arguments[0]), float(arguments[1]))
    status = pytest.main(arguments[2:], plugins=[recorder])
    session = recorder.session
    if session and session.shouldstop and not session.testsfailed:
        return 0  # it ended itself
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
