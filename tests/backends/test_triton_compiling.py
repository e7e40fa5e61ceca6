"""A long first compile is announced once, by a stand-in for a kernel, as there is no GPU here."""

from __future__ import annotations

import contextlib
import time

import pytest
import torch

pytest.importorskip("triton")

from fused_optim.triton_kernels import compiling, launching

DEVICE = torch.device("cuda", 0)
LINE = "fused_optim: Triton is compiling the optimizer's kernels, which has taken"


class Kernel:
    """Takes long to compile where its first launch finds it not compiled."""

    def __init__(self, seconds: float = 0.2) -> None:
        self.seconds, self.launched = seconds, 0

    def warmup(self, *args: object, **options: object) -> None:
        time.sleep(self.seconds)

    def __getitem__(self, grid: tuple) -> object:
        def run(*args: object, **options: object) -> None:
            if not self.launched:
                time.sleep(self.seconds)
            self.launched += 1

        return run


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that needs nothing, in a process that has compiled nothing."""
    monkeypatch.delenv(compiling.VARIABLE, raising=False)
    monkeypatch.setattr(launching, "interpreted", lambda kernel: False)
    monkeypatch.setattr(launching, "_device_guard", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(launching, "_launched", set())
    monkeypatch.setattr(launching, "launches", launching.launches)
    monkeypatch.setattr(compiling, "PATIENCE", 0.05)
    monkeypatch.setattr(compiling, "_waited", 0.0)
    monkeypatch.setattr(compiling, "_said", False)


def launch(kernel: Kernel, **constants: object) -> None:
    launching.launch(kernel, 1, device=DEVICE, **constants)


def test_a_long_compile_is_announced_once_and_on_stderr(capfd: pytest.CaptureFixture) -> None:
    launch(Kernel())
    launch(Kernel())
    launching.compile_ahead(Kernel(), device=DEVICE)
    out, errors = capfd.readouterr()
    assert out == ""
    assert errors.count(LINE) == 1 and errors.count("\n") == 1
    assert "FUSED_OPTIM_QUIET=1" in errors


def test_compiling_ahead_is_announced(capfd: pytest.CaptureFixture) -> None:
    launching.compile_ahead(Kernel(), device=DEVICE)
    assert capfd.readouterr().err.count(LINE) == 1


def test_kernels_that_are_quick_alone_are_long_together(
    capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "PATIENCE", 1.0)
    for _ in range(3):
        assert not capfd.readouterr().err
        launch(Kernel(0.4))
    assert capfd.readouterr().err.count(LINE) == 1


def test_a_quick_compile_says_nothing(
    capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "PATIENCE", 30.0)
    launch(Kernel(0.0))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("value", "lines"), [("1", 0), ("yes", 0), ("0", 1), ("", 1)])
def test_it_is_silenced_by_a_variable(
    capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, value: str, lines: int
) -> None:
    monkeypatch.setenv(compiling.VARIABLE, value)
    launch(Kernel())
    assert capfd.readouterr().err.count(LINE) == lines


def test_only_first_launches_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every launch of a training run would start a thread otherwise."""
    watched = []

    def announced() -> contextlib.nullcontext:
        watched.append(1)
        return contextlib.nullcontext()

    monkeypatch.setattr(launching, "announced", announced)
    kernel = Kernel(0.0)
    for _ in range(5):
        launch(kernel, MODE="split")
    launch(kernel, MODE="kahan")
    assert len(watched) == 2


def test_a_compile_that_fails_is_not_taken_for_done(capfd: pytest.CaptureFixture) -> None:
    class Broken(Kernel):
        def __getitem__(self, grid: tuple) -> object:
            raise RuntimeError("no")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            launch(Broken())
    time.sleep(0.1)
    assert not launching._launched and capfd.readouterr().err == ""
