"""What gpu-check keeps from call to call, and the page it writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import bench_package  # noqa: F401
import made_up_results as made_up
import pytest
from gpu_check_calls import PASS, call, context, page, stage

from bench import results as figures
from bench.goals import GOALS
from tools.gpu_check import __main__ as check
from tools.gpu_check import engine, plan, stages, summary

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
    assert "BELOW FLOOR" in page(tmp_path)
    results.checks = [c for c in results.checks if c.above_floor]
    results.save(where.results)
    assert call(tmp_path, stage("fine", PASS))[0] == 0
    assert missed[0].name in page(tmp_path)


def test_the_time_of_a_whole_build_is_judged_and_kept(tmp_path: Path) -> None:
    where = context(tmp_path, "cuda")
    (where.site / "fused_optim").mkdir(parents=True)
    (where.site / "fused_optim" / "_C.x.so").write_bytes(b"1234")
    build = plan.STAGES[1]
    for where.from_scratch, seconds in ((True, 41.0), (False, 1.5)):  # the second finds it done
        outcome = engine.Outcome("passed", seconds, 0, "")
        status, _, where.previous = stages.collect_build(where, build, outcome)
        assert status == "passed"
        assert where.previous == {"extension_bytes": 4, "whole_seconds": 41.0}
    record = stages.Record(where.out / "stages.json")
    record.start("build", "", 1, "").details = where.previous
    assert "| build | 41 | s | 30 | missed |" in summary.page(record, where.results)


def test_a_build_without_its_extension_fails_on_a_gpu(tmp_path: Path) -> None:
    where = context(tmp_path, "cuda")
    said = "fused_optim is built without its CUDA extension: nvcc has no idea"
    outcome = engine.Outcome("passed", 9.0, 0, f"...\n{said}\n")
    assert stages.collect_build(where, plan.STAGES[1], outcome)[:2] == ("failed", said)
    where.device = "cpu"
    assert stages.collect_build(where, plan.STAGES[1], outcome)[:2] == ("passed", "")


def test_it_is_built_for_this_gpu_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    where = context(tmp_path, "cuda")
    where.found = {"gpu": {"architecture": "9.0"}, "nvcc": "/x/cuda/bin/nvcc 12.8"}
    (where.site / "stale").mkdir(parents=True)
    command = plan.build_command(where)
    assert command[:3] == ["env", "FUSED_OPTIM_CUDA_ARCHS=9.0", "CUDA_HOME=/x/cuda"]
    assert command[-1] == str(where.site) and not where.site.exists()
    where.device = "cpu"
    assert plan.build_command(where)[1] == "FUSED_OPTIM_CUDA=0"


# --- tests ----------------------------------------------------------------------------------------

TESTS = """
import pytest, time
def test_good(): pass
def test_bad(): assert 1 == 2, "the reason"
def test_not_here(): pytest.skip("no GPU")
@pytest.fixture
def broken(): raise ValueError("in a fixture")
def test_set_up(broken): pass
"""


def run_tests(tmp_path: Path, more: str, *options: str, limit_s: float = 60):
    """Return what is kept of a stage that runs these tests and more."""
    (tmp_path / "test_some.py").write_text(TESTS + more)
    where = context(tmp_path)
    where.found = {"packages": {"pytest": "9"}}
    words = [str(tmp_path / "test_some.py"), *options]
    some = plan.tests("tests-x", "some tests", (1, limit_s), *words)
    command = some.command(where)
    some = dataclasses.replace(some, command=lambda _: command)
    return call(tmp_path, some, limit_s=None if limit_s > 9 else limit_s)


def test_the_page_names_the_first_failures(tmp_path: Path) -> None:
    status, kept = run_tests(tmp_path, "")
    entry = kept.stages["tests-x"]
    assert (status, entry.status, entry.reason) == (1, "failed", "2 tests failed")
    told = {f["test"].rpartition("::")[2]: " ".join(f["text"]) for f in entry.details["failures"]}
    assert "the reason" in told["test_bad"] and "in a fixture" in told["test_set_up"]
    text = page(tmp_path)
    for expected in ("1 passed, 2 failed, 1 skipped", "no GPU", "::test_bad", "E   Assertion"):
        assert expected in text


def test_tests_that_are_cut_have_told_which_have_ended(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(check, "SHORTEST_S", 1.0)
    status, kept = run_tests(tmp_path, "def test_slow(): time.sleep(60)\n", limit_s=8)
    entry = kept.stages["tests-x"]
    assert (status, entry.status, entry.reason) == (1, "failed", "2 tests failed")
    assert {f["test"].rpartition("::")[2] for f in entry.details["failures"]} == {
        *("test_bad", "test_set_up")
    }
    assert "test_good PASSED" in (tmp_path / "out" / "log.txt").read_text()


def test_a_module_that_does_not_import_is_a_failure(tmp_path: Path) -> None:
    _, kept = run_tests(tmp_path, "import no_such_module\n")
    (failure,) = kept.stages["tests-x"].details["failures"]
    assert "no_such_module" in " ".join(failure["text"])


def test_tests_that_left_no_record_have_no_counts(tmp_path: Path) -> None:
    (tmp_path / "torn.xml").write_text("<testsuites><testsuite")
    for name in ("none.xml", "torn.xml"):
        assert stages.summarise(tmp_path / name)["passed"] == 0


def test_none_selected_is_skipped(tmp_path: Path) -> None:
    _, kept = run_tests(tmp_path, "", "-k", "nothing")
    entry = kept.stages["tests-x"]
    assert (entry.status, entry.reason) == ("skipped", "no test is selected")
    _, kept = run_tests(tmp_path, "", "-k", "not_here")
    assert kept.stages["tests-x"].reason == "all tests: no GPU"


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
        ["| adamw bandwidth: case 1 (the worst of 2)", "93"],
        ["| host time: case 1 (the worst of 2)", "0.2"],
    ]
