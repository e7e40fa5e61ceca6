"""What gpu-check keeps from call to call, and the page it writes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import bench_package  # noqa: F401
import made_up_results as made_up
import pytest
from gpu_check_calls import PASS, call, context, page, stage

from bench import merging as figures
from bench.goals import GOALS
from tools.gpu_check import engine, plan, stages

# --- calls that follow each other -----------------------------------------------------------------


def test_a_later_call_adds_to_the_record(tmp_path: Path) -> None:
    call(tmp_path, stage("first", PASS), stage("second", "raise SystemExit('no')"))
    status, kept = call(tmp_path, stage("second", PASS), stage("third", PASS))
    assert status == 0
    assert {name: entry.status for name, entry in kept.stages.items()} == {
        name: "passed" for name in ("first", "second", "third")
    }


def test_failures_of_an_earlier_call_still_fail(tmp_path: Path) -> None:
    call(tmp_path, stage("first", "raise SystemExit('no')"))
    assert call(tmp_path, stage("second", PASS))[0] == 1


def test_figures_are_merged_by_what_they_are() -> None:
    old, new = made_up.results(), made_up.results()
    new.rows, new.ratios, new.memory = new.rows[:2], new.ratios[:1], []
    new.rows[0].ms, new.ratios[0].ratio = 123.0, 45.0
    new.missing = []
    both = figures.merged(old, new)
    assert len(both.rows) == len(old.rows)
    assert len(both.ratios) == len(old.ratios)
    assert (both.rows[0].ms, both.ratios[0].ratio) == (123.0, 45.0)
    assert both.memory == old.memory
    assert both.missing == old.missing
    new.machine.gpu = "another GPU"
    assert figures.merged(old, new) is new
    old.machine.device = new.machine.device = "cpu"
    assert figures.merged(old, new) is not new
    new.machine.threads = old.machine.threads + 1
    assert figures.merged(old, new) is new
    assert figures.merged(None, new) is new
    assert figures.merged(old, None) is old


def test_the_results_file_is_added_to(tmp_path: Path) -> None:
    where = context(tmp_path)
    old, new = made_up.results(), made_up.results()
    old.rows, new.rows = old.rows[:3], new.rows[3:5]
    old.save(where.results)
    where.figures = figures.read(where.results)
    new.save(where.record("bench"))
    outcome = engine.Outcome("failed", 1.0, 1, "...\nbelow their floors: x; y\n")
    bench = next(s for s in plan.STAGES if s.name == "bench")
    status, reason, details = stages.collect_figures(where, bench, outcome)
    assert (status, reason) == ("passed", "figures are below their floors")
    assert details["notes"] == [f"{len(new.ratios)} ratios", "2 rows", f"{len(new.memory)} memory"]
    assert len(figures.read(where.results).rows) == 5
    failed = dataclasses.replace(outcome, output="FAILED  AdamW: no\nbelow their floors: x\n")
    assert stages.collect_figures(where, bench, failed)[:2] == ("failed", "1 measurements failed")


# --- floors and the page --------------------------------------------------------------------------


def test_a_figure_below_its_floor_fails_and_is_named(tmp_path: Path, capsys) -> None:
    where = context(tmp_path)
    results = made_up.results()
    below = [c for c in results.checks if not c.above_floor]
    missed = [c for c in results.checks if c.above_floor and not c.met]
    assert below and missed
    results.save(where.results)
    assert call(tmp_path, stage("fine", PASS))[0] == 1
    said = capsys.readouterr().out
    assert all(f"below its floor: {c.name}" in said for c in below)
    assert "BELOW THE FLOOR" in page(tmp_path)
    results.checks = [c for c in results.checks if c.above_floor]
    results.save(where.results)
    assert call(tmp_path, stage("fine", PASS))[0] == 0
    assert missed[0].name in page(tmp_path)


def test_the_time_of_a_whole_build_is_judged_and_kept(tmp_path: Path) -> None:
    where = context(tmp_path)
    path = where.record("build")

    def built(seconds: float, from_scratch: bool) -> str:
        made = {"seconds": seconds, "from_scratch": from_scratch, "built": True}
        return f"open({str(path)!r}, 'w').write({json.dumps(made)!r})"

    for seconds, from_scratch in ((41.0, True), (1.5, False)):  # the second finds it done
        code = built(seconds, from_scratch)
        status, kept = call(tmp_path, stage("build", code, collect=stages.collect_build))
        assert (status, kept.stages["build"].details["whole_seconds"]) == (0, 41.0)
        assert "| build | 41 | 30 | | s | above the floor |" in page(tmp_path)


def test_the_page_names_the_first_failures(tmp_path: Path) -> None:
    lines = [{"test": "tests/test_x.py::test_y[case]", "outcome": "failed", "seconds": 0.1}]
    lines[0]["text"] = "def test_y():\n>   assert 1 == 2\nE   assert 1 == 2\n\ntests/test_x.py:7: A"
    lines += [{"test": "b", "outcome": "skipped", "seconds": 0, "text": "Skipped: no GPU"}]
    code = f"open({str(context(tmp_path).record('tests-x'))!r}, 'w').write({json.dumps(lines[0])!r}"
    code += f" + chr(10) + {json.dumps(lines[1])!r}); raise SystemExit(1)"
    status, kept = call(tmp_path, stage("tests-x", code, collect=stages.collect_tests))
    assert (status, kept.stages["tests-x"].reason) == (1, "1 tests failed")
    text = page(tmp_path)
    assert "0 passed, 1 failed, 1 skipped" in text
    for expected in ("tests/test_x.py::test_y[case]", "E   assert 1 == 2", "tests/test_x.py:7: A"):
        assert expected in text


@pytest.mark.parametrize(
    ("output", "returncode", "expected"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", 0, "passed"),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", 0, "passed"),
        ("========= Invalid read\n========= ERROR SUMMARY: 2 errors\n", 86, "failed"),
        ("========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)\n", 86, "failed"),
        ("========= COMPUTE-SANITIZER\n========= Error: Device not supported\n", 1, "skipped"),
        ("========= ERROR SUMMARY: 0 errors\nFAILED AdamW\n", 1, "failed"),
        ("Traceback (most recent call last):\nImportError: x\n", 1, "failed"),
    ],
)  # fmt: skip
def test_verdicts_of_a_sanitizer(tmp_path, output: str, returncode: int, expected: str) -> None:
    outcome = engine.Outcome("passed" if returncode == 0 else "failed", 1.0, returncode, output)
    tool = plan.sanitizer("memcheck", "cuda")
    status, reason, details = stages.collect_sanitizer(context(tmp_path), tool, outcome)
    assert status == expected
    assert (reason == "") == (status == "passed")
    assert "Device not supported" in reason or status != "skipped"


def test_cases_of_a_goal_share_a_row_of_the_page(tmp_path: Path) -> None:
    checks = [GOALS["host time"].check(v, f"case {i}") for i, v in enumerate((0.1, 0.2, 0.4, 0.9))]
    checks += [GOALS["adamw bandwidth"].check(v, f"case {i}") for i, v in enumerate((95.0, 93.0))]
    results = made_up.results()
    results.checks = checks
    results.save(context(tmp_path).results)
    call(tmp_path, stage("fine", PASS))
    rows = [line for line in page(tmp_path).splitlines() if ": case" in line and "|" in line]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| host time: case 3", "0.9"],
        ["| host time: case 2", "0.4"],
        ["| host time: case 1 (the worst of 2)", "0.2"],
        ["| adamw bandwidth: case 1 (the worst of 2)", "93"],
    ]
