"""What README and docs say, against what is there."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from fused_optim import dispatch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def load_report():
    spec = importlib.util.spec_from_file_location("report", ROOT / "bench" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cpu_figures_are_those_of_the_committed_results() -> None:
    report = load_report()
    results = json.loads(report.CPU_RESULTS.read_text())
    assert report.cpu_table(results) in README
    assert report.with_figures(README, results) == README


def test_committed_cpu_results_reach_their_goals() -> None:
    rows = json.loads(load_report().CPU_RESULTS.read_text())["rows"]
    goals = [row for row in rows if row["goal"] is not None]
    assert goals
    assert [row for row in goals if row["ratio"] < row["goal"]] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= targets


def test_every_environment_variable_is_documented() -> None:
    sources = [*ROOT.glob("fused_optim/**/*.py"), *ROOT.glob("triton_kernels/*.py")]
    sources += [ROOT / "setup.py"]
    names = {n for p in sources for n in re.findall(r"\bFUSED_OPTIM_[A-Z_]+\b", p.read_text())}
    macros = {"FUSED_OPTIM_ARCHITECTURES", "FUSED_OPTIM_HOST"}  # of the C++ preprocessor
    assert dispatch.ENVIRONMENT_VARIABLE in names
    assert {name for name in names - macros if f"`{name}`" not in README} == set()
