"""What gpu-check's stages run: the kernel worker, large tensors, the sweep, build and tests."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import bench_package  # noqa: F401
import pytest
import torch

from bench import ROOT, shapes, sweep
from bench.results import load
from bench.shapes import SHAPES, numel
from tools.gpu_check import build, kernels, recorder

# --- every kernel ---------------------------------------------------------------------------------


def worker(tmp_path: Path, seconds: float = 1e9) -> kernels.Worker:
    options = {"backend": "eager", "device": "cpu", "compare": True, "seconds": seconds}
    options["share"] = (0, 1)
    return kernels.Worker(argparse.Namespace(json=tmp_path / "record.json", **options))


def test_sums_are_compared_too(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = ("sums", dtype, "auto", "strided", ("eager", "cpu"))
        for p, q in zip(
            kernels.trained(*case),
            kernels.parameters(dtype, "strided", "cpu"),
            strict=True,
        ):
            expected = q.main_grad.float().to(dtype)
            torch.testing.assert_close(p, expected * kernels.STEPS, rtol=2**-7, atol=0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SHAPES", ((9,), (5, 3)))
    some = [case for case in kernels.cases() if case[0] == "AdamW"]
    monkeypatch.setattr(kernels, "cases", lambda *share: iter(some))


def test_every_optimizer_mode_and_layout_is_stepped() -> None:
    cases = list(kernels.cases())
    alike = [name for name in kernels.OPTIMIZERS if name != "sums"]  # which know no modes
    assert len(set(cases)) == len(cases) == (len(alike) * (1 + 5 + 4) + 3) * 2
    for layout in kernels.LAYOUTS:
        params = kernels.parameters(torch.bfloat16, layout, "cpu")
        grads = [p.main_grad for p in params]
        assert {g.dtype for g in grads} == set(kernels.precision.SUPPORTED_DTYPES)
        assert all(g.is_contiguous() for g in grads) == (layout == "dense")
        assert any(g.data_ptr() % 16 for g in grads if g.numel()) == (layout == "strided")


def test_the_worker_counts_and_writes(tmp_path: Path, small: None) -> None:
    checked = worker(tmp_path)
    assert checked.run() == 0
    kept = json.loads((tmp_path / "record.json").read_text())
    assert (kept["passed"], kept["failed"]) == (20, 0)
    assert worker(tmp_path, seconds=-1).run() == 0
    assert "0 of 20 cases, for want of time" in (tmp_path / "record.json").read_text()


def test_a_wrong_kernel_is_a_failure(tmp_path: Path, small: None, monkeypatch) -> None:
    real = kernels.trained

    def wrong(name, dtype, mode, layout, where):
        results = real(name, dtype, mode, layout, where)
        if dtype is torch.float16 and checked.passed % 2:  # of kernel or reference, one is wrong
            results[0][-1] += 0.5
        checked.passed += dtype is torch.float16
        return results

    monkeypatch.setattr(kernels, "trained", wrong)
    checked = worker(tmp_path)
    assert checked.run() == 8
    failures = json.loads((tmp_path / "record.json").read_text())["failures"]
    assert failures[0]["test"] == "AdamW, float16, master, dense"
    assert any("Mismatched elements: 1 / 9" in line for line in failures[0]["text"])


def test_a_dead_device_ends_the_run(tmp_path: Path, small: None, monkeypatch) -> None:
    def dies(*_):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(kernels, "trained", dies)
    monkeypatch.setattr(kernels.Worker, "alive", lambda self: False)
    assert worker(tmp_path).run() == 1
    kept = json.loads((tmp_path / "record.json").read_text())
    assert kept["notes"][-1] == "the device does not answer after case 1"


# --- sweep, build, record of tests ----------------------------------------------------------------


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
    words = [str(ROOT), str(record), "-q", "-p", "no:cacheprovider"]
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
