"""What gpu-check's stages run: the sweep, the build and the record of tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import bench_package  # noqa: F401
import pytest

pytest.importorskip("pandas")
pytest.importorskip("rich")

from bench import ROOT, shapes, sweep
from bench.results import load
from bench.shapes import SHAPES, numel
from tools.gpu_check import build, recorder


def test_lists_of_the_sweep() -> None:
    for device, quick in (("cpu", True), ("cuda", False)):
        for name in sweep.lists(device, quick):
            tensors, size = name.rpartition("-")[2].split("x")
            assert len(SHAPES[name]) == int(tensors)
            assert numel(SHAPES[name]) == int(tensors) * int(size) <= sweep.MOST[device]
            assert shapes.kind_of(name) in (shapes.FIXED_SIZE, shapes.FIXED_TENSORS)
    assert shapes.kind_of("llama-8b") is None
    assert shapes.matrix(1_000_000) == (1000, 1000)
    assert shapes.matrix(997) == (997,)  # a prime


def test_the_sweep_measures(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    words = ["--device", "cpu", "--quick", "--most", "1e4", "--rounds", "3", "--json", str(path)]
    assert sweep.main(words) == 0
    kept = load(path)
    assert [row.optimizer for row in kept.rows] == [name for name, _ in sweep.QUICK]
    assert all(row.parameters == 10_000 and row.tensors == 16 for row in kept.rows)


def test_a_build_that_fails_leaves_one_without_kernels(tmp_path: Path, monkeypatch) -> None:
    calls = []

    def fake(site: Path, request: dict[str, str]) -> int:
        calls.append(request)
        return int(request["FUSED_OPTIM_CUDA"] == "1")

    monkeypatch.setattr(build, "_setup", fake)
    record = tmp_path / "build.json"
    assert build.main([str(tmp_path / "site"), str(record), "9.0"]) == 1
    assert calls == [
        {"FUSED_OPTIM_CUDA": "1", "FUSED_OPTIM_CUDA_ARCHS": "9.0"},
        {"FUSED_OPTIM_CUDA": "0"},
    ]
    assert json.loads(record.read_text())["built"] is False


def test_tests_are_recorded_as_they_end(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import os, pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'the reason'\n"
        "def test_not_here(): pytest.skip('no GPU')\n"
        "@pytest.fixture\ndef broken(): raise ValueError('in a fixture')\n"
        "def test_set_up(broken): pass\n"
        "def test_dies(): os._exit(3)\n"
    )
    (tmp_path / "test_broken.py").write_text("import no_such_module\n")
    record = tmp_path / "record.jsonl"
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from tools.gpu_check.recorder import main"
    )
    words = [str(ROOT), str(record), "1e6", "-q", "-p", "no:cacheprovider"]
    words += ["--continue-on-collection-errors", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit(main(sys.argv[1:]))", *words],
        cwd=tmp_path,
        capture_output=True,
    )
    assert done.returncode == 3
    found = recorder.summarise(record)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 3, 1)
    told = {f["test"].rpartition("::")[2]: " ".join(f["text"]) for f in found["failures"]}
    assert "the reason" in told["test_bad"]
    assert "in a fixture" in told["test_set_up"]
    assert "no_such_module" in told["test_broken.py"]
    assert found["skip_reasons"] == {"Skipped: no GPU": 1}


def test_a_recorder_ends_in_time(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text("def test_a(): pass\ndef test_b(): pass\n")
    record = tmp_path / "record.jsonl"
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from tools.gpu_check.recorder import main"
    )
    words = [str(ROOT), str(record), "0", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    command = [sys.executable, "-c", f"{code}; sys.exit(main(sys.argv[1:]))", *words]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    found = recorder.summarise(record)
    assert (found["passed"], found["failed"]) == (1, 0)
    assert found["notes"] == ["2 tests, of which not all were reached in time"]
