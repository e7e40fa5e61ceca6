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

import bench_package  # noqa: F401
import pytest
from gpu_check_calls import PASS, call, context, page, stage

from bench import ROOT, system
from bench.__main__ import parser
from bench.pairs import PAIRS
from tools.gpu_check import __main__ as check
from tools.gpu_check import engine, plan, stages

KERNELS = ROOT / "tests/backends/test_every_kernel.py"

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
    marker = tmp_path / "beats"
    child = f"""if True:
        import time
        while True:
            open({str(marker)!r}, "a").write(".")
            time.sleep(0.05)
    """
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); "
    code += "print('here', flush=True); time.sleep(60)"
    status, kept = call(tmp_path, stage("hangs", code, 4), stage("fine", PASS))
    assert (status, kept.stages["hangs"].status) == (1, "timeout")
    assert kept.stages["hangs"].tail[0] == "here"
    assert kept.stages["fine"].status == "passed"
    beats = marker.stat().st_size
    time.sleep(0.5)
    assert marker.stat().st_size == beats > 0


def test_a_stage_that_ignores_an_interrupt_is_killed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(engine, "GRACE_S", 0.2)
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    outcome = engine.run([sys.executable, "-c", code], tmp_path / "log", 4, dict(os.environ))
    assert (outcome.status, outcome.returncode) == ("timeout", -signal.SIGKILL)
    assert outcome.seconds < 20


def test_what_the_time_limit_cuts_is_no_failure(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(check, "SHORTEST_S", 1.0)
    slow = stage("slow", "import time; print('begun', flush=True); time.sleep(60)")
    late = dataclasses.replace(stage("late", PASS), expected_s=0.0)
    status, kept = call(tmp_path, slow, late, limit_s=2.0)
    assert status == 0
    assert kept.stages["slow"].status == "cut"
    assert kept.stages["late"].reason == "no time was left for it"
    assert "not done: slow, late" in page(tmp_path)
    assert "| late | no time was left for it |" in page(tmp_path)


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
        plan.sanitizer("memcheck", "cuda").command(where)
    where.found["packages"] = {"pytest": None, "rich": None}
    with pytest.raises(engine.Skip, match="rich is not installed"):
        next(s for s in plan.STAGES if s.name == "sweep").command(where)
    with pytest.raises(engine.Skip, match="pytest is not installed"):
        plan.parity("cuda", 60).command(where)

    def missing(_):
        raise engine.Skip("there is no such tool")

    lacking = dataclasses.replace(stage("lacking", PASS), command=missing)
    status, kept = call(tmp_path, lacking)
    assert (status, kept.stages["lacking"].status) == (0, "skipped")
    assert "| lacking | there is no such tool |" in page(tmp_path)


def test_figures_come_before_suites_and_name_pairs_that_exist(tmp_path: Path) -> None:
    names = [s.name for s in plan.STAGES]
    assert names.index("smoke-cuda") < names.index("figures") < names.index("tests-gpu")
    where = context(tmp_path, "cuda")
    where.limit_s = 100.0
    command = plan.STAGES[names.index("figures")].command(where)
    options = parser().parse_args(command[command.index("--device") :])
    assert len(options.shapes) == 5
    for text in options.only.split(","):
        assert any(text in str(pair) for pair in PAIRS)


def test_suites_of_several_processes_run_without_benchmarks(tmp_path: Path) -> None:
    """pytest-benchmark warns of pytest-xdist, and warnings are errors."""
    assert "-pno:benchmark" in plan.parity("cuda", 60).command(context(tmp_path, "cuda"))


def test_a_page_is_drawn_where_that_is_possible(tmp_path: Path) -> None:
    where = context(tmp_path)
    with pytest.raises(engine.Skip, match="nothing was measured"):
        plan.report_command(where)
    where.results.write_text("{}")
    assert str(where.results) in plan.report_command(where)
    where.found["packages"] = {"matplotlib": None}
    with pytest.raises(engine.Skip, match="matplotlib is not installed"):
        plan.report_command(where)


def test_it_is_told_to_end(tmp_path: Path) -> None:
    """SIGTERM: the stage is killed, and what was found is there."""
    code = f"""if True:
        import sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from tools.gpu_check import __main__ as gpu_check
        from tools.gpu_check.stages import Stage
        slow = [sys.executable, "-c", "import time; print('slow', flush=True); time.sleep(60)"]
        stages = [Stage("slow", "sleeps", 1, 90, lambda _: slow)]
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
    path, out = where.record("some"), where.out / "stages.json"
    code = f"""if True:
        import json, time
        open({str(path)!r}, "w").write('{{"found": 1}}')
        while True:
            time.sleep(0.02)
            kept = json.load(open({str(out)!r}))["stages"]["some"]
            if kept["details"].get("found") == 1:
                raise SystemExit(0 if kept["status"] == "running" else 9)
    """
    status, kept = call(tmp_path, stage("some", code))
    assert (status, kept.stages["some"].status) == (0, "passed")
    interrupted = stages.Record(out)
    interrupted.start("some", "", 1, "")
    assert stages.Record.open(out).stages["some"].reason.startswith("everything was killed")


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
    monkeypatch.setattr(check, "gpu_name", lambda: None)
    assert check.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("gpu-check: no GPU here") and said.err.count("\n") == 1


def test_the_build_under_test_comes_before_the_checkout(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FUSED_OPTIM_BACKEND", "eager")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("PYTHONPATH", "/peers")
    where = context(tmp_path, "cuda")
    variables = where.environment(FUSED_OPTIM_TEST_BACKEND="cuda")
    assert variables["PYTHONPATH"].split(os.pathsep) == [str(where.site), str(ROOT), "/peers"]
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
    assert check.folder_of("NVIDIA H200") == "h200"
    assert check.folder_of("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"


def test_smoke_and_sanitizers_get_the_gpu_and_leave_time_to_report(tmp_path: Path) -> None:
    where = context(tmp_path, "cuda")
    packages = {"pytest": "8", "pytest-xdist": "3", "pytest-timeout": None}
    where.found = {"compute_sanitizer": "/x/compute-sanitizer", "cores": 16, "packages": packages}
    where.limit_s = 200
    watched = plan.sanitizer("memcheck", "triton")
    _, until, tool, *command = watched.command(where)
    assert tool == "/x/compute-sanitizer"
    name, _, seconds = until.partition("=")
    assert name == "GPU_CHECK_WATCHES_UNTIL" and name in KERNELS.read_text()
    assert float(seconds) - time.time() == pytest.approx(150, abs=5)
    assert command[command.index("--tool") + 1] == "memcheck"
    assert watched.variables["FUSED_OPTIM_BACKEND"] == "triton"
    assert "-n" not in command and "no:xdist" in command
    excluded = command[command.index("--kernel-name-exclude") + 1].partition("=")[2]
    assert excluded in "_ZN2at6native29vectorized_elementwise_kernelILi4ENS0_11FillFunctorIfEE"
    assert excluded not in "_ZN11fused_optim_GLOBAL__N_111AdamWKernelILl0ELNS_4ModeE0ELb0EEE"
    smoke = plan.smoke("triton", 20)
    command = smoke.command(where)
    assert smoke.variables == {"FUSED_OPTIM_BACKEND": "triton"}
    assert command[command.index("--dist") + 1] == "loadgroup"  # no kernel is compiled twice
    assert "-n" not in plan.smoke("cuda", 20).command(where)
    command = plan.parity("cuda", 60).command(where)
    assert "--timeout" not in command
    assert command[command.index("-n") + 1] == "12"


def test_a_hanging_tool_is_no_hang_of_the_probe(monkeypatch) -> None:
    def hangs(*_, **options):
        raise subprocess.TimeoutExpired("nvidia-smi", options["timeout"])

    monkeypatch.setattr(subprocess, "run", hangs)
    assert system.output("nvidia-smi") is None
    assert check.gpu_name() is None


def test_measuring_stages_are_given_what_time_there_is(tmp_path: Path) -> None:
    where = context(tmp_path, "cuda")
    where.limit_s = 100.0
    measuring = [s for s in plan.STAGES if s.collect is stages.collect_figures]
    words = {s.name: " ".join(map(str, s.command(where))) for s in measuring}
    assert "--time-limit 85 --parts ratios,rows --quick" in words["bench"]
    assert words["sweep"].endswith("--sweep --warm-up 0.05 --quick")
    assert words["bench-full"].endswith("--full")


def test_parity_stages_take_every_file_that_runs_over_backends() -> None:
    names = [Path(path).name for path in plan.parity_files()]
    assert {"test_parity.py", "test_properties.py"} <= set(names)
    assert "test_schedules.py" not in names
