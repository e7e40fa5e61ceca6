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


def test_times_of_a_pair_belong_together() -> None:
    """Fast and slow rounds, of which each step's median is another: 40 and 10, 4 times, not 2."""
    before, after = [10.0, 10.0, 40.0, 40.0, 40.0], [5.0, 5.0, 20.0, 20.0, 10.0]
    b, a = timing.middle_means(before, after)
    assert b / a == pytest.approx(2.0)
    assert before[0] < b < before[-1]


@pytest.mark.parametrize("rounds", range(3, 12))
def test_an_outlier_moves_no_ratio_beyond_the_quartiles(rounds: int) -> None:
    after = [1.0 + 0.01 * (7 * i % rounds) for i in range(rounds)]
    before = [3.0 * a * (1.0 + 0.02 * (5 * i % rounds)) for i, a in enumerate(after)]
    before[1] *= 1000.0
    b, a = timing.middle_means(before, after)
    low, _, high = timing.quartiles([b / a for b, a in zip(before, after, strict=True)])
    assert low - 1e-9 <= b / a <= high + 1e-9
    assert min(before) < b < 10.0 and min(after) <= a <= max(after)


def test_a_round_or_two_have_a_ratio_as_well() -> None:
    assert timing.middle_means([6.0], [3.0]) == pytest.approx((6.0, 3.0))
    assert timing.middle_means([2.0, 8.0], [1.0, 1.0]) == pytest.approx((4.0, 1.0))


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
