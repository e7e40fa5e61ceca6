"""How a step is timed: in turns with what it is compared to, and never from a warm cache.

On a GPU, events around the step give the device's time. Before them a buffer larger than the L2
cache is read, so that the step finds none of its data there, and it is read often enough to keep
the device busy until the host has queued the step: launches are then not waited for. The host's
time is taken apart from that, with an empty queue and no synchronisation within it.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from bench import system

Step = Callable[[], None]

_MIN_ROUNDS = 3
_MAX_FLUSHES = 500
_COPY_BYTES = {"cuda": 2**30, "cpu": 2**28}


@dataclass
class Times:
    """What the rounds of one step took; on a CPU the host's time is the only one."""

    ms: list[float] = field(default_factory=list)
    host_us: list[float] = field(default_factory=list)


class CpuTimer:
    def __init__(self, warm_up: float = 0.2) -> None:
        self._warm_up = warm_up
        self._flushed = torch.randn(_cpu_cache_bytes() // 2)  # twice the cache, in floats

    def warm(self, step: Step) -> None:
        """Step twice, and on until state exists and clocks are up."""
        start, steps = time.monotonic(), 0
        while steps < 2 or time.monotonic() - start < self._warm_up:
            step()
            steps += 1

    def round(self, step: Step, times: Times) -> None:
        self._flushed.sum()
        start = time.perf_counter()
        step()
        times.ms.append(1e3 * (time.perf_counter() - start))


class CudaTimer(CpuTimer):
    def __init__(self, device: torch.device, warm_up: float = 0.2) -> None:
        self._device, self._warm_up = device, warm_up
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._flushed = torch.randn(max(4 * cache, 2**28) // 4, device=device)
        self._flush_ms = min(self._timed(self._flushed.sum) for _ in range(5))

    def warm(self, step: Step) -> None:
        super().warm(lambda: (step(), torch.cuda.synchronize(self._device)))

    def round(self, step: Step, times: Times) -> None:
        torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        step()
        host_ms = 1e3 * (time.perf_counter() - start)
        times.host_us.append(1e3 * host_ms)
        torch.cuda.synchronize(self._device)
        flushes = math.ceil(1.5 * host_ms / self._flush_ms) + 1
        for _ in range(min(flushes, _MAX_FLUSHES)):
            self._flushed.sum()
        times.ms.append(self._timed(step))

    def _timed(self, action: Callable[[], object]) -> float:
        with torch.cuda.device(self._device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            action()
            end.record()
            end.synchronize()
        return start.elapsed_time(end)


def timer_for(device: torch.device, warm_up: float) -> CpuTimer:
    return CudaTimer(device, warm_up) if device.type == "cuda" else CpuTimer(warm_up)


def in_turns(
    steps: Sequence[Step], timer: CpuTimer, rounds: int, deadline: float = math.inf
) -> list[Times]:
    """Time steps in turns, A B B A A B, so that a drifting machine slows all of them alike.

    There are fewer rounds, but not fewer than 3, where the deadline passes.
    """
    for step in steps:
        timer.warm(step)
    times = [Times() for _ in steps]
    turns = list(zip(steps, times, strict=True))
    for index in range(rounds):
        if index >= _MIN_ROUNDS and time.monotonic() > deadline:
            break
        for step, found in turns if index % 2 == 0 else reversed(turns):
            timer.round(step, found)
    return times


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    return tuple(np.quantile(values, (0.25, 0.5, 0.75)).tolist())


def middle_means(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Return what two steps took that were timed in turns, such that both belong together.

    Of the pairs the middle half is taken, by their ratios, and of each step's times in these the
    geometric mean. So the ratio of the two results is the geometric mean of the pairs' ratios and
    lies between the quartiles, whatever outliers there are. Two medians would be of two different
    rounds: their ratio can lie beyond the quartiles, where a machine has fast and slow rounds.
    """
    pairs = sorted(zip(before, after, strict=True), key=lambda pair: pair[0] / pair[1])
    cut = min(math.ceil((len(pairs) - 1) / 4), (len(pairs) - 1) // 2)
    middle = pairs[cut : len(pairs) - cut]
    return tuple(statistics.geometric_mean(times) for times in zip(*middle, strict=True))


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float | None:
    """Return the ratio of two medians, or None where there is nothing."""
    if not numerators or not denominators:
        return None
    return round(statistics.median(numerators) / statistics.median(denominators), 3)


def copy_bandwidth(device: torch.device, timer: CpuTimer, rounds: int) -> tuple[list[float], int]:
    """Return the GB/s of copies within the device, read and written, and the bytes copied."""
    size = _COPY_BYTES[device.type]
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    (times,) = in_turns([lambda: target.copy_(source)], timer, rounds)
    return [2 * size / (1e6 * ms) for ms in times.ms], size


def _cpu_cache_bytes() -> int:
    """Return the size of the last-level cache, or a guess; bounded, as some are shared widely."""
    size = system.text("/sys/devices/system/cpu/cpu0/cache/index3/size").strip().rstrip("K")
    return min(1024 * int(size) if size.isdigit() else 2**25, 2**27)
