"""Calls of gpu-check with stages of a test's own."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import bench_package  # noqa: F401
import pytest

pytest.importorskip("pandas")
pytest.importorskip("jinja2")

from tools.gpu_check import __main__ as check
from tools.gpu_check import stages

PASS = "print('all is well')"


def context(tmp_path: Path, device: str = "cpu") -> stages.Context:
    for name in ("out", "work"):
        (tmp_path / name).mkdir(exist_ok=True)
    return stages.Context(sys.executable, device, True, tmp_path / "out", tmp_path / "work")


def stage(name: str, code: str, limit_s: float = 60, collect=stages.collect_record):
    command = [sys.executable, "-c", code]
    return stages.Stage(name, f"test of {name}", 1, limit_s, lambda _: command, collect)


def call(tmp_path: Path, *some, limit_s: float | None = None) -> tuple[int, stages.Record]:
    """Exit status of a call that runs these stages, and what it recorded."""
    deadline = None if limit_s is None else time.monotonic() + limit_s
    status = check.Check(context(tmp_path), list(some), deadline).run()
    return status, stages.Record.open(tmp_path / "out" / "stages.json")


def page(tmp_path: Path) -> str:
    return (tmp_path / "out" / "summary.md").read_text()
