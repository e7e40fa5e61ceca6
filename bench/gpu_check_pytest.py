"""Runs pytest and writes what came of each test at once, for a run that may be killed.

``python -m bench.gpu_check_pytest FILE [pytest's arguments]`` appends a line of JSON per test that
has ended: its name, its outcome, its seconds and, where it failed, what pytest prints of it.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # gpu-check reads records where there may be no pytest
    import pytest

SHOWN_FAILURES = 8
SHOWN_LINES = 14


class Recorder:
    """A pytest plugin; under pytest-xdist it is the controller's, which hears of every test."""

    def __init__(self, path: Path):
        self.file = open(path, "w", encoding="utf-8")  # closed with the process
        self.broken: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.write(report.nodeid, report.outcome, report.duration, report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Called per worker, too: a module that does not import is written once."""
        if report.outcome == "failed" and report.nodeid not in self.broken:
            self.broken.add(report.nodeid)
            self.write(report.nodeid, "failed", 0.0, report)

    def write(self, name: str, outcome: str, seconds: float, report: Any) -> None:
        line = {"test": name, "outcome": outcome, "seconds": round(seconds, 3)}
        if outcome == "failed":
            line["text"] = report.longreprtext
        if outcome == "skipped" and isinstance(report.longrepr, tuple):
            line["text"] = report.longrepr[-1]
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()


def summarise(path: Path) -> dict[str, Any]:
    """Return the counts of a file of records, and the first lines of the first failures."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # the run was killed while it wrote this one
            continue
    counts = Counter(record["outcome"] for record in records)
    failures = [record for record in records if record["outcome"] == "failed"]
    reasons = Counter(r.get("text", "") for r in records if r["outcome"] == "skipped")
    slowest = sorted(records, key=lambda record: -record["seconds"])[:3]
    return {
        "passed": counts["passed"],
        "failed": counts["failed"],
        "skipped": counts["skipped"],
        "failures": [
            {"test": record["test"], "text": essence(record.get("text", ""))}
            for record in failures[:SHOWN_FAILURES]
        ],
        "skip_reasons": dict(reasons.most_common(6)),
        "slowest": [[record["test"], record["seconds"]] for record in slowest],
    }


def essence(text: str) -> list[str]:
    """Return the lines of a failure that say most: the errors and where they arose."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E ")]
    places = [line for line in lines if not line.startswith(("E ", ">", " ", "_")) and ":" in line]
    telling = errors[: SHOWN_LINES - 2] + places[-2:]
    return telling if errors else lines[-SHOWN_LINES:]


def main(arguments: list[str]) -> int:
    """Run pytest with a recorder and return its exit status."""
    import pytest

    return int(pytest.main(arguments[1:], plugins=[Recorder(Path(arguments[0]))]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
