"""What the system says of itself, None where it does not; for processes without torch, too."""

import importlib.metadata
import subprocess
from pathlib import Path

from bench import ROOT

DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def output(*command: str) -> str | None:
    """Return what a command prints, if it succeeds in time: a driver's tools may hang."""
    options = {"capture_output": True, "text": True, "timeout": 90, "check": True}
    try:
        done = subprocess.run(command, cwd=ROOT, **options)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def text(path: str) -> str:
    """Return a file of /proc, or nothing."""
    return Path(path).read_text() if Path(path).exists() else ""
