"""How benchmarks take turns."""

from __future__ import annotations

import time

import bench_package  # noqa: F401
import pytest
import torch

from bench import timing
from bench.timing import Times


class Recorder:
    """A timer that notes the order of steps."""

    def __init__(self) -> None:
        self.warmed: list = []

    def warm(self, step) -> None:
        self.warmed.append(step)

    def round(self, step, times: Times) -> None:
        step()
        times.ms.append(1.0)


def test_steps_take_turns_and_change_sides() -> None:
    order, timer = "", Recorder()

    def step(name: str):
        def run() -> None:
            nonlocal order
            order += name

        return run

    a, b = step("a"), step("b")
    times = timing.in_turns([a, b], timer, rounds=4)
    assert order == "abbaabba"
    assert timer.warmed == [a, b]
    assert [len(t.ms) for t in times] == [4, 4]


def test_a_deadline_ends_rounds_but_not_before_three() -> None:
    times = timing.in_turns([lambda: None] * 2, Recorder(), 50, deadline=time.monotonic() - 1)
    assert [len(t.ms) for t in times] == [3, 3]


def test_quartiles() -> None:
    assert timing.quartiles([5.0]) == (5.0, 5.0, 5.0)
    assert timing.quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


def test_ratio_of_medians() -> None:
    assert timing.median_ratio([1.0, 2.0, 9.0], [4.0]) == 0.5
    assert timing.median_ratio([], [1.0]) is None


def test_cpu_timer_times_the_step_and_warms_up(monkeypatch) -> None:
    monkeypatch.setattr(timing, "_cpu_cache_bytes", lambda: 1024)
    timer, calls = timing.CpuTimer(warm_up=0.05), []

    def step() -> None:
        calls.append(time.monotonic())
        time.sleep(0.02)

    timer.warm(step)
    assert calls[-1] - calls[0] >= 0.02
    times = Times()
    timer.round(step, times)
    assert 20 <= times.ms[0] < 2000
    assert times.host_us == []


def test_copy_bandwidth_counts_what_is_read_and_written(monkeypatch) -> None:
    monkeypatch.setitem(timing._COPY_BYTES, "cpu", 1000)
    rates, size = timing.copy_bandwidth(torch.device("cpu"), Recorder(), rounds=3)
    assert size == 1000
    assert rates == pytest.approx([2 * 1000 / 1e6] * 3)  # a millisecond each


@pytest.mark.gpu
def test_cuda_timer_sees_the_device_and_not_the_host() -> None:
    device = torch.device("cuda")
    timer, times = timing.CudaTimer(device, warm_up=0.1), Times()
    data = torch.randn(2**24, device=device)

    def step() -> None:
        time.sleep(0.002)  # the host's time
        data.mul_(1.0001)

    timer.warm(step)
    for _ in range(5):
        timer.round(step, times)
    assert min(times.host_us) >= 2000
    assert min(times.ms) < 1.0
