"""The record of all stages, kept from call to call: ``stages.json`` beside the figures."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1

RUNNING, PASSED, FAILED = "running", "passed", "failed"
TIMEOUT, CUT, SKIPPED = "timeout", "cut", "skipped"
"""Timeout: not done within the stage's own limit. Cut: within what the call had left for it."""


@dataclass
class Entry:
    """What came of one stage.

    Attributes:
        status: one of the names above.
        title: what the stage does.
        date: when it was started.
        commit: of the checkout it ran in.
        seconds: how long it ran.
        limit_s: how long it was allowed to run.
        reason: why it did not pass.
        details: what its process recorded.
        tail: the last lines of its output, where it did not pass.
    """

    status: str
    title: str
    date: str = ""
    commit: str = ""
    seconds: float = 0.0
    limit_s: float = 0.0
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    tail: list[str] = field(default_factory=list)

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
    def open(cls, path: Path) -> Record:
        """Return what earlier calls left; an unreadable file counts as none."""
        try:
            data = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError):
            return cls(path)
        if data.get("format") != FORMAT:
            return cls(path)
        stages = {name: Entry(**entry) for name, entry in data["stages"].items()}
        for entry in stages.values():
            if entry.status == RUNNING:
                entry.status, entry.reason = CUT, "everything was killed while it ran"
        return cls(path, stages)

    def start(self, name: str, title: str, limit_s: float, commit: str) -> Entry:
        """Begin a stage; what an earlier call recorded of it is replaced."""
        date = time.strftime("%Y-%m-%d %H:%M")
        entry = Entry(RUNNING, title, date, commit, limit_s=round(limit_s, 1))
        self.stages[name] = entry
        self.save()
        return entry

    def save(self) -> None:
        """Write the file at once: a kill never leaves half of it."""
        data = {name: asdict(entry) for name, entry in self.stages.items()}
        write(self.path, json.dumps({"format": FORMAT, "stages": data}, indent=1) + "\n")


def write(path: Path, text: str) -> None:
    """Replace a file's content at once."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
