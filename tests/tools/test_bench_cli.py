"""``python -m bench`` from the command line to the file and back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bench_package  # noqa: F401
import pytest
import torch

pytest.importorskip("pandas")
pytest.importorskip("rich")

from bench import __main__ as cli
from bench import memory, results, shapes, timing
from bench.goals import GOALS, Goal
from bench.pairs import Pair
from bench.run import Session
from bench.setups import SETUPS, SWEPT, Setup
from bench.shapes import SHAPES, numel
from fused_optim.backends import dispatch

ROOT = Path(__file__).resolve().parents[2]
PAIR = Pair("torch_compat.AdamW", "torch AdamW fused", "equal semantics")
FAST = ("--device", "cpu", "--shapes", "smoke", "--rounds", "3", "--warm-up", "0")


@pytest.fixture(autouse=True)
def little(monkeypatch) -> None:
    """Leave out what only makes figures good."""
    monkeypatch.setattr(timing, "_cpu_cache_bytes", lambda: 1024)
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(timing._COPY_BYTES, device, 2**16)


@pytest.fixture
def pairs(monkeypatch):
    return lambda *found: monkeypatch.setattr(cli, "PAIRS", found)


def measure(path: Path, *arguments: str) -> tuple[int, results.Results]:
    status = cli.main([*FAST, "--json", str(path), *arguments])
    return status, results.load(path)


def test_from_the_command_line_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    command = [sys.executable, "-m", "bench", *FAST, "--only", "torch AdamW fused clipped"]
    command += ["--dtype", "fp32", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = results.load(path)
    assert found.machine.device == "cpu" and found.machine.torch in done.stdout
    assert found.copy.gb_per_s > 0
    (ratio,) = found.ratios
    assert (ratio.rounds, ratio.kind) == (3, "equal semantics")
    low, high = ratio.ratio_quartiles
    assert 0.99 * low <= ratio.ratio <= 1.01 * high and low > 0  # of three digits
    assert ratio.ratio == pytest.approx(ratio.baseline_ms / ratio.ours_ms, rel=0.006)
    assert [row.optimizer for row in found.rows] == [ratio.ours, ratio.baseline]
    chosen = dispatch.choose("auto", "adamw_", torch.device("cpu"))
    assert [row.backend for row in found.rows] == [chosen, None]
    (memory,) = found.memory  # in a process of its own
    assert memory.state_bytes_per_parameter == pytest.approx(8, abs=0.01)
    assert found.missing == []
    for text in ("torch_compat.AdamW clipped", "ratios, in turns", "memory", "[1/"):
        assert text in done.stdout


def test_rows_of_a_pair_are_not_measured_again(tmp_path: Path, pairs) -> None:
    pairs(PAIR)
    options = ("--only", "torch_compat.AdamW", "--parts", "ratios,rows", "--dtype", "fp32")
    status, found = measure(tmp_path / "a.json", *options)
    keys = [row.key for row in found.rows]
    assert status == 0 and len(keys) == len(set(keys)) > 2
    row = next(row for row in found.rows if row.optimizer == "torch AdamW fused")
    assert row.traffic_bytes_per_parameter == pytest.approx(28, abs=0.05)
    expected = row.traffic_bytes_per_parameter * row.parameters / (1e6 * row.ms)
    # Rounded to two digits and one, which is much of what a busy machine leaves of them.
    assert row.gb_per_s == pytest.approx(expected, rel=0.01, abs=0.006)
    share = 100 * expected / found.copy.gb_per_s
    assert row.copy_percent == pytest.approx(share, rel=0.01, abs=0.06)


def test_a_baseline_of_several_pairs_is_counted_once(tmp_path: Path, pairs, monkeypatch) -> None:
    """Counting takes a trace on a GPU, which for long loops is slower than all of the timing."""
    counted = []
    monkeypatch.setattr("bench.traffic.launches", lambda found: counted.append(found.setup.name))
    pairs(PAIR, Pair("AdamW", PAIR.baseline, "default"))
    status, found = measure(tmp_path / "a.json", "--parts", "ratios")
    assert status == 0 and len(found.ratios) == 2
    assert counted == [PAIR.ours, PAIR.baseline, "AdamW"]


def test_compare_with_an_earlier_file(tmp_path: Path, pairs, capsys) -> None:
    pairs(PAIR)
    base, new = tmp_path / "base.json", tmp_path / "new.json"
    _, found = measure(base, "--parts", "ratios")
    found.rows[0].ms, found.ratios[0].ratio = 1e6, 1e-3
    found.save(base)
    capsys.readouterr()
    status, now = measure(new, "--parts", "ratios", "--compare", str(base))
    printed = capsys.readouterr().out
    assert status == 0
    steps, ratios = printed.split("steps against the base")[1].split("ratios against the base")
    (line,) = (line for line in steps.splitlines() if "1,000,000" in line)
    faster = float(line.split()[-1].replace(",", ""))
    assert faster == pytest.approx(1e6 / now.rows[0].ms, rel=0.01)
    (line,) = (line for line in ratios.splitlines() if " 0.001 " in line)
    assert line.split()[0] == "torch_compat.AdamW"


def test_merge_keeps_what_is_not_measured_again(tmp_path: Path, pairs) -> None:
    other = Pair("AdamW", PAIR.baseline, "default")
    pairs(PAIR, other)
    path = tmp_path / "a.json"
    _, old = measure(path, "--parts", "ratios")
    assert len(old.ratios) == 2
    pairs(other)
    _, both = measure(path, "--parts", "ratios", "--merge", str(path))
    assert [ratio.key for ratio in both.ratios] == [ratio.key for ratio in old.ratios]
    assert both.ratios[0] == old.ratios[0] and both.rows[0] == old.rows[0]
    assert both.ratios[1] != old.ratios[1]


def test_merge_needs_a_file_to_write_to(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main([*FAST, "--merge", str(tmp_path / "old.json")])
    assert "--merge: needs --json" in capsys.readouterr().err


def test_compare_refuses_another_format_before_measuring(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match="format"):
        cli.main([*FAST, "--compare", str(tmp_path / "old.json")])


def test_a_missing_peer_is_noted_once(tmp_path: Path, pairs, monkeypatch) -> None:
    peer = Setup("absent", "adamw", "nowhere", "no_such_module:Optimizer", {}, ("fp32",))
    monkeypatch.setitem(SETUPS, "absent", peer)
    pairs(Pair("AdamW", "absent", "default"), Pair("AdamWeightDecay", "absent", "default"), PAIR)
    status, found = measure(tmp_path / "a.json", "--parts", "ratios")
    assert status == 0
    (missing,) = found.missing
    assert missing.what == "absent, fp32"
    assert missing.why == "not installed: No module named 'no_such_module'"
    assert len(found.ratios) == 1


@pytest.mark.parametrize("source", ["nowhere", "torch"])
def test_what_fails_is_noted_and_ours_fails_the_run(
    tmp_path: Path, pairs, monkeypatch, source: str
) -> None:
    options = {"no_such_option": 1}
    broken = Setup("broken", "adamw", source, "torch.optim:AdamW", options, ("fp32",))
    monkeypatch.setitem(SETUPS, "broken", broken)
    pairs(Pair("AdamW", "broken", "default"), PAIR)
    status, found = measure(tmp_path / "a.json", "--parts", "ratios")
    assert status == (1 if source == "torch" else 0)
    assert len(found.ratios) == 1
    assert [m.why.split(":")[0] for m in found.missing] == ["TypeError"]


def test_a_disagreement_fails_the_run_and_is_not_timed(tmp_path: Path, pairs, capsys) -> None:
    pairs(Pair("AdamW", "torch AdamW fused", "equal semantics"))  # their eps differ in meaning
    status, found = measure(tmp_path / "a.json", "--parts", "ratios")
    assert status == 1
    assert found.ratios == [] and found.rows == []
    (missing,) = found.missing
    assert "AdamW vs torch AdamW fused (smoke, fp32) disagree" in missing.why
    assert "FAILED  AdamW vs torch AdamW fused" in capsys.readouterr().out


@pytest.mark.parametrize(("floor", "status"), [(1e9, 1), (1e-9, 0)])
def test_a_missed_floor_is_the_exit_status(
    tmp_path: Path, pairs, monkeypatch, capsys, floor: float, status: int
) -> None:
    goal = Goal("made up", "", "x", 1e9, floor, device="cpu", shapes=("smoke",))
    monkeypatch.setitem(GOALS, "made up", goal)
    pairs(Pair(PAIR.ours, PAIR.baseline, "default", targets=("made up",)))
    found_status, found = measure(tmp_path / "a.json", "--parts", "ratios")
    assert found_status == status
    (check,) = found.checks
    assert (check.met, check.above_floor) == (False, not status)
    assert ("below their floors" in capsys.readouterr().out) == bool(status)


def test_a_time_limit_keeps_what_was_measured(tmp_path: Path, pairs, monkeypatch) -> None:
    pairs(PAIR, Pair("AdamW", "torch AdamW fused", "default"))
    original = Session.measure_pair

    def slow(self: Session, *arguments: object) -> None:
        original(self, *arguments)
        self.deadline = 0.0

    monkeypatch.setattr(Session, "measure_pair", slow)
    status, found = measure(tmp_path / "a.json", "--parts", "ratios", "--time-limit", "1000")
    assert status == 0 and len(found.ratios) == 1
    (missing,) = found.missing
    assert missing.what.startswith("AdamW vs torch AdamW fused")
    assert missing.why == "not reached within the time limit"


def test_no_time_at_all_measures_nothing(tmp_path: Path) -> None:
    status, found = measure(tmp_path / "a.json", "--time-limit", "0", "--parts", "ratios,memory")
    assert status == 0
    assert found.ratios == found.memory == []
    assert len(found.missing) > 100


def test_lists_too_large_for_the_memory_are_noted(tmp_path: Path, pairs, monkeypatch) -> None:
    pairs(PAIR)
    monkeypatch.setattr("bench.system.free_bytes", lambda device: 2**18)
    status, found = measure(tmp_path / "a.json", "--parts", "ratios")
    assert status == 0
    assert found.missing[0].why == "out of memory: may need 0.0 GiB, and 0.0 GiB are free"


def test_memory_is_measured_in_processes_of_their_own(tmp_path: Path) -> None:
    options = ("--only", "torch Adafactor", "--dtype", "fp32", "--parts", "memory")
    status, found = measure(tmp_path / "a.json", *options)
    assert status == 0 and found.missing == []
    assert [m.optimizer for m in found.memory] == ["torch Adafactor", "torch Adafactor foreach"]
    assert found.memory[0].transient_bytes < found.memory[1].transient_bytes


def test_isolated_processes_report_failures_and_go_on() -> None:
    where = ("smoke", "fp32", "cpu", None)
    with pytest.raises(RuntimeError, match="KeyError: 'no such setup'"):
        memory.isolated("no such setup", where, 100)
    with pytest.raises(TimeoutError):
        memory.isolated("torch AdamW fused", where, 0)
    found = memory.isolated("torch AdamW fused", where, 100)
    assert found.state_bytes_per_parameter == pytest.approx(8, abs=0.01)


class Dies:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (3,)


def test_a_process_that_dies_is_reported() -> None:
    with pytest.raises(RuntimeError, match="the process ended with status 3"):
        memory.isolated(Dies(), ("smoke", "fp32", "cpu", None), 100)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Profiler clears events")  # as torch 2.11 says of any trace
def test_on_a_gpu_launches_and_host_times_are_measured(tmp_path: Path, pairs) -> None:
    pairs(PAIR)
    status, found = measure(tmp_path / "a.json", "--device", "cuda", "--parts", "ratios")
    assert status in (0, 1)  # so small a list may miss its goal
    assert found.machine.gpu and found.machine.l2_bytes
    (ratio,) = found.ratios
    assert ratio.host_ratio > 0
    ours = found.rows[0]
    assert ours.host_us > 0
    if ours.backend != "eager":
        assert ours.launches in (1, None)  # None where tracing is not permitted
        assert ours.traffic_bytes_per_parameter == pytest.approx(28)


def test_list_names_everything(capsys) -> None:
    assert cli.main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name in (*SETUPS, "llama-8b-1of8", "equal bytes"):
        assert name in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shapes", "gpt5"), "gpt5 unknown; known are smoke"),
        (("--rounds", "0"), "at least 1 is needed"),
        (("--dtype", "fp64"), "fp64 unknown"),
        (("--quick", "--full"), "not allowed with"),
    ],
)
def test_bad_arguments_say_what_is_known(arguments, message: str, capsys) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main([*arguments])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_filters(tmp_path: Path) -> None:
    options = cli.parser().parse_args(
        ["--op", "adafactor", "--dtype", "bf16", "--shapes", "smoke", "--only", "T5"]
    )
    work = list(cli.tasks(Session(cli.torch.device("cpu"), 1, warm_up=0), options))
    assert work
    for task in work:
        assert all(setup.op == "adafactor" for setup in task.setups)
        assert task.dtype == "bf16" and "T5" in task.what


def test_lists_of_the_sweep() -> None:
    for device, quick in (("cpu", True), ("cuda", False)):
        for name in shapes.sweep_lists(device, quick):
            tensors, size = name.rpartition("-")[2].split("x")
            assert len(SHAPES[name]) == int(tensors)
            assert numel(SHAPES[name]) == int(tensors) * int(size) <= shapes.MOST_SWEPT[device]
            assert shapes.kind_of(name) in (shapes.FIXED_SIZE, shapes.FIXED_TENSORS)
    assert shapes.kind_of("llama-8b") is None
    assert shapes.matrix(1_000_000) == (1000, 1000)
    assert shapes.matrix(997) == (997,)  # a prime


def test_the_sweep_measures(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    words = ["--device", "cpu", "--sweep", "--quick", "--most", "1e4", "--rounds", "3"]
    assert cli.main([*words, "--warm-up", "0", "--json", str(path)]) == 0
    kept = results.load(path)
    assert [(row.optimizer, row.dtype) for row in kept.rows] == list(SWEPT[:7])
    assert all(row.parameters == 10_000 and row.tensors == 16 for row in kept.rows)
    assert kept.ratios == kept.memory == []
