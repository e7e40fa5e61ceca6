"""gpu-check from end to end, on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import bench_package  # noqa: F401
import pytest

pytest.importorskip("pandas")
pytest.importorskip("jinja2")

from bench import ROOT, shapes
from bench.results import load


def rehearse(tmp_path: Path, stages: str, *more: str) -> tuple[int, dict, Path]:
    out = tmp_path / "out"
    words = ["--device", "cpu", "--out", str(out), "--work", str(tmp_path / "work")]
    done = subprocess.run(
        [sys.executable, "-m", "tools.gpu_check", *words, "--stages", stages, *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.returncode, json.loads((out / "stages.json").read_text())["stages"], out


def test_a_short_rehearsal(tmp_path: Path) -> None:
    status, stages, out = rehearse(tmp_path, "memcheck,large,report")
    assert status == 0
    statuses = {name: entry["status"] for name, entry in stages.items()}
    assert statuses.pop("environment") == statuses.pop("build") == "passed"
    assert set(statuses.values()) == {"skipped"}
    assert (tmp_path / "work/site/fused_optim/triton_kernels/adamw.py").exists()
    assert {path.name for path in out.iterdir()} == {"stages.json", "summary.md", "log.txt"}


@pytest.mark.long
def test_a_rehearsal(tmp_path: Path) -> None:
    some = "smoke,tests-cuda,bench,memory,memcheck,racecheck,large,sweep,report"
    status, stages, out = rehearse(tmp_path, some, "--time-limit", "900")
    assert status == 0
    for name, entry in stages.items():
        unfit = name.startswith(("smoke", "memcheck", "racecheck", "large"))
        assert entry["status"] == ("skipped" if unfit else "passed"), (name, entry)
    assert len(list(out.iterdir())) <= 8
    results = load(out / "results.json")
    assert results.ratios and any(shapes.kind_of(row.shapes) for row in results.rows)
    assert "torch_compat.AdamW" in (out / "report.html").read_text()
