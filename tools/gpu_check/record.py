"""The record of all stages, kept from call to call: ``stages.json`` beside the figures."""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.results import write

FORMAT = 1

RUNNING, PASSED, FAILED = "running", "passed", "failed"
TIMEOUT, CUT, SKIPPED = "timeout", "cut", "skipped"
"""Timeout: not done within the stage's own limit. Cut: within what the call had left for it."""


@dataclass
class Entry:
    status: str
    title: str
    date: str = ""
    commit: str = ""
    seconds: float = 0.0
    limit_s: float = 0.0
    reason: str = ""  # why it did not pass
    details: dict[str, Any] = field(default_factory=dict)  # what its process recorded
    tail: list[str] = field(default_factory=list)  # of its output, where it did not pass

    @property
    def failure(self) -> bool:
        """Whether the check as a whole has failed for it: it found a fault, or it hung."""
        return self.status in (FAILED, TIMEOUT) or bool(self.details.get("failed"))


@dataclass
class Record:
    """Stages by name, in the order they were first run."""

    path: Path
    stages: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> "Record":
        """Return what earlier calls left; an unreadable file counts as none."""
        data = read_json(path) or {}
        if data.get("format") != FORMAT:
            return cls(path)
        stages = {name: Entry(**entry) for name, entry in data["stages"].items()}
        for entry in stages.values():
            if entry.status == RUNNING:
                entry.status, entry.reason = CUT, "everything was killed while it ran"
        return cls(path, stages)

    def start(self, name: str, title: str, limit_s: float, commit: str) -> Entry:
        date = time.strftime("%Y-%m-%d %H:%M")
        self.stages[name] = Entry(RUNNING, title, date, commit, limit_s=round(limit_s, 1))
        self.save()
        return self.stages[name]

    def save(self) -> None:
        data = {name: asdict(entry) for name, entry in self.stages.items()}
        write(self.path, json.dumps({"format": FORMAT, "stages": data}, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Return what a file holds, or None where a process has not come to write one."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None
