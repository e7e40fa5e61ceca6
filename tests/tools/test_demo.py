"""The demo as its users run it: a program that is killed, stopped and started again."""

import asyncio
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--corpus", str(Path(asyncio.__file__).parent), "--device", "cpu", "--threads", "1",
    "--layers", "1", "--width", "16", "--heads", "2", "--context", "16", "--batch", "4",
    "--lr-scale", "3",
)  # fmt: skip
RESUMED = ("--optimizers", "adamw,adafactor,adam-weight-decay", "--steps", "240")


def command(out: Path, *options: str) -> list[str]:
    """The demo's command line at a tiny size."""
    return [
        sys.executable,
        str(ROOT / "examples/demo/train_gpt.py"),
        *TINY,
        "--out",
        str(out),
        *options,
    ]


def demo(out: Path, *options: str) -> str:
    """Run the demo to its end and return what it printed."""
    done = subprocess.run(command(out, *options), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def interrupted_demo(out: Path, key: str, signum: int, *options: str) -> tuple[int, str]:
    """Run the demo, send a signal once optimizer `key` has a checkpoint; its status and stderr."""
    process = subprocess.Popen(
        command(out, *options, "--checkpoint-every", "7"),
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not list(out.glob(f"checkpoints/{key}-*.pt")):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, f"{key} wrote no checkpoint"
            time.sleep(0.002)
        process.send_signal(signum)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert not (out / "curves.json").exists(), "the run ended before the signal"
    return process.returncode, stderr


def checkpoints(out: Path) -> dict[str, dict]:
    """Every checkpoint under `out`, by file name."""
    return {path.name: torch.load(path) for path in sorted(out.glob("checkpoints/*.pt"))}


def assert_equal_trees(actual: object, expected: object, where: str) -> None:
    """Equality to the last bit of nested dictionaries, lists, tensors and numbers."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key in expected:
            assert_equal_trees(actual[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), where
        for index, pair in enumerate(zip(actual, expected, strict=True)):
            assert_equal_trees(*pair, f"{where}[{index}]")
    elif isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype and torch.equal(actual, expected), where
    else:
        assert actual == expected, where


def assert_learned(out: Path, *keys: str) -> dict:
    """The picture is a picture; the curves are finite and fall."""
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    curves = json.loads((out / "curves.json").read_text())
    assert list(curves["runs"]) == list(keys)
    for key, run in curves["runs"].items():
        validation = [loss for _, loss in run["validation"]]
        assert all(map(math.isfinite, run["train"] + validation)), key
        assert validation[-1] < validation[0] - 1.0, (key, validation)
        assert len(run["train"]) == len(run["lr"]) == curves["settings"]["steps"]
    return curves["runs"]


def test_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """Killed, stopped and killed again, in three optimizers: as if nothing had happened."""
    reference, out = tmp_path / "reference", tmp_path / "resumed"
    demo(reference, *RESUMED)
    runs = assert_learned(reference, "adamw", "adafactor", "adam-weight-decay")
    assert runs["adam-weight-decay"]["lr"][0] == 0.0  # its own schedule starts its warm-up at 0
    sizes = {key: run["summary"]["state_bytes_per_parameter"] for key, run in runs.items()}
    assert sizes["adafactor"] < sizes["adamw"] / 2

    status, _ = interrupted_demo(out, "adamw", signal.SIGKILL, *RESUMED)
    assert status == -signal.SIGKILL
    (killed,) = checkpoints(out).values()
    assert 0 < killed["step"] < 240

    status, stderr = interrupted_demo(out, "adafactor", signal.SIGINT, *RESUMED)
    assert status == 128 + signal.SIGINT
    assert "To resume, run the same command again: python " in stderr
    assert "Traceback" not in stderr
    stopped = checkpoints(out)
    assert sorted(state["step"] for state in stopped.values())[1] == 240
    assert any(name in stderr for name in stopped)

    status, _ = interrupted_demo(out, "adam-weight-decay", signal.SIGKILL, *RESUMED)
    assert status == -signal.SIGKILL
    stdout = demo(out, *RESUMED)
    assert stdout.count("all 240 steps already done") == 2
    assert "resumed at step" in stdout

    actual, expected = checkpoints(out), checkpoints(reference)
    for state in (*actual.values(), *expected.values()):
        for timing in ("step_ms", "optimizer_ms"):
            assert len(state["history"].pop(timing)) == 240
    assert_equal_trees(actual, expected, "checkpoint")


def test_bf16_keeps_learning_and_fresh_starts_over(tmp_path: Path) -> None:
    """Parameters in bf16, all four optimizers, and the options that only fused_optim's know."""
    options = ("--dtype", "bf16", "--low-precision", "kahan", "--state-dtype", "bf16")
    options += ("--steps", "60")
    demo(tmp_path, *options)
    runs = assert_learned(tmp_path, "torch-adamw", "adamw", "adafactor", "adam-weight-decay")
    for key in ("torch-adamw", "adafactor"):
        assert runs[key]["summary"]["state_bytes_per_parameter"] < 6
    # Two moments and a compensation, 2 bytes each.
    assert runs["adamw"]["summary"]["state_bytes_per_parameter"] == pytest.approx(6, abs=0.1)
    again = demo(tmp_path, *options, "--optimizers", "adamw", "--fresh")
    assert "already done" not in again and "resumed" not in again
    assert assert_learned(tmp_path, "adamw")["adamw"]["train"] == runs["adamw"]["train"]
