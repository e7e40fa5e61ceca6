"""gpu-check's own machinery: limits, kills, merging, floors, tools that are missing."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import bench_package  # noqa: F401
import made_up_results as made_up
import pytest

from bench import ROOT
from bench import gpu_check as check
from bench import gpu_check_engine as engine
from bench import gpu_check_figures as figures
from bench import gpu_check_plan as plan
from bench import gpu_check_probe as probe
from bench import gpu_check_record as record
from bench import gpu_check_stages as stages

PASS = "print('all is well')"


def context(tmp_path: Path, device: str = "cpu") -> stages.Context:
    for name in ("out", "work"):
        (tmp_path / name).mkdir(exist_ok=True)
    return stages.Context(sys.executable, device, True, tmp_path / "out", tmp_path / "work")


def stage(name: str, code: str, limit_s: float = 60, collect=stages.collect_record):
    command = [sys.executable, "-c", code]
    return stages.Stage(name, f"test of {name}", 1, limit_s, lambda _: command, collect)


def call(tmp_path: Path, *some, limit_s: float | None = None) -> tuple[int, record.Record]:
    """Exit status of a call that runs these stages, and what it recorded."""
    deadline = None if limit_s is None else time.monotonic() + limit_s
    status = check.Check(context(tmp_path), list(some), deadline).run()
    return status, record.Record.open(tmp_path / "out" / "stages.json")


def page(tmp_path: Path) -> str:
    return (tmp_path / "out" / "summary.md").read_text()


# --- stages ---------------------------------------------------------------------------------------


def test_a_failing_stage_is_named_and_the_next_one_runs(tmp_path: Path, capsys) -> None:
    fails = stage("broken", "print('about to fail'); raise SystemExit('a reason | of its own')")
    status, kept = call(tmp_path, fails, stage("fine", PASS))
    assert status == 1
    assert {n: e.status for n, e in kept.stages.items()} == {"broken": "failed", "fine": "passed"}
    assert "broken: failed: a reason | of its own" in capsys.readouterr().out
    assert "a reason \\| of its own" in page(tmp_path)
    assert "about to fail" in page(tmp_path)


def test_a_stage_that_hangs_is_killed_with_what_it_started(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(check, "SHORTEST_S", 1.0)
    marker = tmp_path / "child"
    child = f"import time; time.sleep(9); open({str(marker)!r}, 'w')"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); "
    begin = time.monotonic()
    status, kept = call(
        tmp_path,
        stage("hangs", code + "print('here', flush=True); time.sleep(60)", 3),
        stage("fine", PASS),
    )
    assert (status, kept.stages["hangs"].status) == (1, "timeout")
    assert kept.stages["hangs"].tail == ["here"]
    assert kept.stages["fine"].status == "passed"
    time.sleep(max(0.0, begin + 11 - time.monotonic()))
    assert not marker.exists()


def test_a_stage_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(engine, "GRACE_S", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    outcome = engine.run([sys.executable, "-c", code], tmp_path / "log", 1.5, dict(os.environ))
    assert (outcome.status, outcome.returncode) == ("timeout", -signal.SIGKILL)
    assert outcome.seconds < 10


def test_what_the_time_limit_cuts_is_no_failure(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(check, "SHORTEST_S", 1.0)
    slow = stage("slow", "import time; print('begun', flush=True); time.sleep(60)")
    late = dataclasses.replace(stage("late", PASS), expected_s=0.0)
    status, kept = call(tmp_path, slow, late, limit_s=2.0)
    assert status == 0
    assert kept.stages["slow"].status == "cut"
    assert kept.stages["late"].reason == "no time was left for it"
    assert "not done: slow, late" in page(tmp_path)
    assert "- late: no time was left for it" in page(tmp_path)


def test_shares_of_the_time() -> None:
    many = [(10, 60), (100, 300), (20, 120)]
    assert engine.share(None, many) == 60
    assert engine.share(1000, many) == 60  # there is time enough for its own limit
    assert engine.share(150, many) == 30  # what the others are not expected to need
    assert engine.share(130, many) == 10
    assert engine.share(100, many[1:]) == 80  # the report keeps its time
    assert engine.share(12, many[2:]) == 12
    assert engine.share(0, many) == 0
    assert engine.share(-5, many[2:]) == 0


def test_a_missing_tool_is_a_reason(tmp_path: Path) -> None:
    where = context(tmp_path, "cuda")
    with pytest.raises(engine.Skip, match="compute-sanitizer is neither on PATH"):
        stages.sanitizer("memcheck", "cuda").command(where)
    with pytest.raises(engine.Skip, match="pytest is not installed"):
        plan.parity("cuda", 60).command(where)

    def missing(_):
        raise engine.Skip("there is no such tool")

    lacking = dataclasses.replace(stage("lacking", PASS), command=missing)
    status, kept = call(tmp_path, lacking)
    assert (status, kept.stages["lacking"].status) == (0, "skipped")
    assert "- lacking: there is no such tool" in page(tmp_path)


def test_it_is_told_to_end(tmp_path: Path) -> None:
    """SIGTERM: the stage is killed, and what was found is there."""
    code = f"""if True:
        import sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from bench import gpu_check, gpu_check_plan as plan
        from bench.gpu_check_stages import Stage, collect_record
        slow = [sys.executable, "-c", "import time; print('slow', flush=True); time.sleep(60)"]
        stages = [Stage("slow", "sleeps", 1, 90, lambda _: slow, collect_record)]
        gpu_check.choose = lambda names, quick: stages
        sys.exit(gpu_check.main(["--device", "cpu", "--out", sys.argv[1], "--work", sys.argv[2]]))
    """
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, str(out), str(tmp_path / "work")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not (out / "log.txt").exists() or "\nslow" not in (out / "log.txt").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "told to end" in said
    kept = json.loads((out / "stages.json").read_text())["stages"]["slow"]
    assert (kept["status"], kept["reason"]) == ("cut", "gpu-check was told to end")


def test_a_running_stage_is_on_disk(tmp_path: Path, monkeypatch) -> None:
    """A kill that nothing survives leaves the record of the last seconds."""
    monkeypatch.setattr(engine, "TICK_S", 0.1)
    where = context(tmp_path)
    path, out = where.record("tests-x"), where.out / "stages.json"
    line = json.dumps({"test": "t", "outcome": "passed", "seconds": 1})
    code = f"""if True:
        import json, time
        open({str(path)!r}, "w").write({line!r} + chr(10) + '{{"torn')
        while True:
            time.sleep(0.02)
            kept = json.load(open({str(out)!r}))["stages"]["tests-x"]
            if kept["details"].get("passed") == 1:
                raise SystemExit(0 if kept["status"] == "running" else 9)
    """
    status, kept = call(tmp_path, stage("tests-x", code, collect=plan.collect_tests))
    assert (status, kept.stages["tests-x"].status) == (0, "passed")
    interrupted = record.Record(out)
    interrupted.start("tests-x", "", 1, "")
    assert record.Record.open(out).stages["tests-x"].reason.startswith("everything was killed")


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
    assert plan.collect_figures(where, bench, outcome)[0] == "passed"  # the floors say the rest
    assert len(figures.read(where.results).rows) == 5
    failed = dataclasses.replace(outcome, output="FAILED  AdamW: no\nbelow their floors: x\n")
    assert plan.collect_figures(where, bench, failed)[:2] == ("failed", "1 measurements failed")


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
        assert "| build | 41 | 30 |  | s | above the floor |" in page(tmp_path)


def test_the_page_names_the_first_failures(tmp_path: Path) -> None:
    lines = [{"test": "tests/test_x.py::test_y[case]", "outcome": "failed", "seconds": 0.1}]
    lines[0]["text"] = "def test_y():\n>   assert 1 == 2\nE   assert 1 == 2\n\ntests/test_x.py:7: A"
    lines += [{"test": "b", "outcome": "skipped", "seconds": 0, "text": "Skipped: no GPU"}]
    code = f"open({str(context(tmp_path).record('tests-x'))!r}, 'w').write({json.dumps(lines[0])!r}"
    code += f" + chr(10) + {json.dumps(lines[1])!r}); raise SystemExit(1)"
    status, kept = call(tmp_path, stage("tests-x", code, collect=plan.collect_tests))
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
    tool = stages.sanitizer("memcheck", "cuda")
    status, reason, details = stages.collect_sanitizer(context(tmp_path), tool, outcome)
    assert status == expected
    assert (reason == "") == (status == "passed")
    assert "Device not supported" in reason or status != "skipped"


# --- which stages ---------------------------------------------------------------------------------


def test_names_of_stages_and_groups() -> None:
    def names(*given: str) -> list[str]:
        return [s.name for s in plan.choose(given, quick=True)]

    always = ["environment", "build"]
    assert names("smoke") == [*always, "smoke-cuda", "smoke-triton"]
    assert names("report", "bench") == [*always, "bench", "report"]  # in their own order
    assert names("bench-full") == [*always, "bench-full"]
    every = [s.name for s in plan.choose(None, quick=False)]
    assert every == [s.name for s in plan.STAGES]
    assert set(every) - {s.name for s in plan.choose(None, quick=True)} == {"bench-full"}
    with pytest.raises(ValueError, match="no stage is called 'smoky'; there are"):
        plan.choose(["smoky"], True)


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr(check, "_gpu_name", lambda: None)
    assert check.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("gpu-check: no GPU here") and said.err.count("\n") == 1


def test_the_build_under_test_comes_before_the_checkout(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FUSED_OPTIM_BACKEND", "eager")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    where = context(tmp_path, "cuda")
    variables = where.environment(FUSED_OPTIM_TEST_BACKEND="cuda")
    assert variables["PYTHONPATH"].split(os.pathsep) == [str(where.site), str(ROOT)]
    assert "FUSED_OPTIM_BACKEND" not in variables and "TRITON_INTERPRET" not in variables
    assert variables["FUSED_OPTIM_TEST_BACKEND"] == "cuda"
    (where.site / "fused_optim").mkdir(parents=True)
    (where.site / "fused_optim" / "__init__.py").write_text("")
    code = "import sys, fused_optim; print(fused_optim.__file__)"
    (where.site / "show.py").write_text(code)
    command = engine.module(sys.executable, "show")
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == str(where.site / "fused_optim" / "__init__.py"), done.stderr


def test_gpus_are_told_apart_by_folder() -> None:
    assert check._slug("NVIDIA H200") == "h200"
    assert check._slug("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"


def test_smoke_and_sanitizers_get_the_gpu_and_leave_time_to_report(tmp_path: Path) -> None:
    where = context(tmp_path, "cuda")
    where.found, where.limit_s = {"compute_sanitizer": "/x/compute-sanitizer", "cores": 16}, 200
    command = stages.sanitizer("memcheck", "triton").command(where)
    assert command[0] == "/x/compute-sanitizer"
    assert command[command.index("--tool") + 1] == "memcheck"
    assert command[command.index("--backend") + 1] == "triton"
    assert command[command.index("--seconds") + 1] == "150"
    where.found["packages"] = {"pytest": "8", "pytest-xdist": "3", "pytest-timeout": None}
    command = plan.parity("cuda", 60).command(where)
    assert "--timeout" not in command
    assert command[command.index("-n") + 1] == "12"


def test_a_hanging_tool_is_no_hang_of_the_probe(monkeypatch) -> None:
    def hangs(*_, **options):
        raise subprocess.TimeoutExpired("nvidia-smi", options["timeout"])

    monkeypatch.setattr(probe, "subprocess", SimpleNamespace(
        run=hangs, SubprocessError=subprocess.SubprocessError
    ))  # fmt: skip
    assert probe._first_line(["nvidia-smi"]) is None


def test_parity_stages_take_every_file_that_runs_over_backends() -> None:
    names = [Path(path).name for path in plan.parity_files()]
    assert {"test_parity_adamw.py", "test_parity_adafactor.py", "test_properties.py"} <= set(names)
    assert "test_schedules.py" not in names
