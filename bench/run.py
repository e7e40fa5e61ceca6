"""One run: what it measures, on what, and the results so far."""

import gc
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench import agreement, costs, goals, machine, memory, timing
from bench.agreement import DisagreementError
from bench.merging import merged
from bench.pairs import Pair
from bench.results import Copy, Missing, Ratio, Results, Row, quotient
from bench.setups import DTYPES, OURS, SETUPS, Setup
from bench.shapes import SHAPES, numel
from bench.subject import Subject, free

# Of state per parameter: two float32 moments and a master. On a CPU as much again for temporaries,
# for there is no running out of memory that one could recover from.
_STATE_BYTES = {"cuda": 12, "cpu": 24}


class TimeLimitError(Exception):
    """The run's time is over."""


@dataclass
class Session:
    """What a run measures with, and what it found: on disk after each measurement."""

    device: torch.device
    rounds: int  # steps of each optimizer
    backend: str | None = None  # of this package's optimizers; None leaves it to them
    json: Path | None = None
    earlier: Results | None = None  # to keep in that file beside this run's
    deadline: float = math.inf  # in terms of time.monotonic
    warm_up: float | None = None  # seconds before each measurement; None: the device's default
    failures: list[str] = field(default_factory=list)
    _tried: dict[tuple[str, str], str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.results = Results(machine.describe(self.device))
        self._timer = timing.timer_for(self.device, self.warm_up)

    def measure_copy(self) -> None:
        """Measure the bandwidth that rows are compared with."""
        rates, size = timing.copy_bandwidth(self.device, self._timer, max(self.rounds, 5))
        low, median, high = timing.quartiles(rates)
        quartiles = [round(low, 2), round(high, 2)]
        self.results.copy = Copy(round(median, 2), size, quartiles)
        self.save()

    def measure_pair(self, pair: Pair, shapes: str, dtype: str) -> None:
        """Time two setups in turns, after a check that they agree where they should."""
        self._check_fits(shapes, dtype, 2)
        ours, baseline = (
            Subject(SETUPS[name], shapes, dtype, self.device, self.backend)
            for name in (pair.ours, pair.baseline)
        )
        if pair.kind == "equal semantics":
            agreement.check(ours, baseline, f"{pair} ({shapes}, {dtype})")
        own, theirs = self._times(ours, baseline)
        for subject, times in ((ours, own), (baseline, theirs)):
            self._add_row(subject, shapes, times)
        baseline_ms, ours_ms = timing.middle_means(theirs.ms, own.ms)
        each = [b / o for b, o in zip(theirs.ms, own.ms, strict=True)]
        low, _, high = timing.quartiles(each)
        goal = pair.goal(self.device.type, shapes, dtype)
        ratio = Ratio(
            *(pair.ours, pair.baseline, shapes, dtype, pair.kind, ours.parameters),
            *(round(baseline_ms, 4), round(ours_ms, 4), len(each)),
            ratio=quotient(baseline_ms, ours_ms),
            ratio_quartiles=[round(low, 3), round(high, 3)],
            host_ratio=timing.median_ratio(own.host_us, theirs.host_us),
            goal=goal and goal.goal,
            floor=goal and goal.floor,
        )
        self.results.ratios.append(ratio)
        self.save()

    def measure_row(self, setup: Setup, shapes: str, dtype: str) -> None:
        """Time a setup alone, unless a pair did."""
        if self._has_row(setup, shapes, dtype):
            return
        self._check_fits(shapes, dtype, 1)
        subject = Subject(setup, shapes, dtype, self.device, self.backend)
        (times,) = self._times(subject)
        self._add_row(subject, shapes, times)
        self.save()

    def measure_memory(self, setup: Setup, shapes: str, dtype: str) -> None:
        """Measure a setup's memory in a process of its own."""
        self._check_fits(shapes, dtype, 1)
        free()
        left = min(self.deadline - time.monotonic(), 1e6)
        where = (shapes, dtype, str(self.device), self.backend)
        try:
            found = memory.isolated(setup.name, where, left)
        except TimeoutError as error:
            raise TimeLimitError from error
        self.results.memory.append(found)
        self.save()

    def why_not(self, setup: Setup, dtype: str) -> str | None:
        """Try a peer once, on a few small tensors, and return why it can't be measured here."""
        if _must_work(setup):
            return None
        key = (setup.name, dtype)
        if key not in self._tried:

            def trial() -> None:
                subject = Subject(setup, "smoke", dtype, self.device)
                for _ in range(2):
                    subject.step()

            done = self.attempt(f"{setup.name}, {dtype}", (setup,), trial)
            self._tried[key] = None if done else self.results.missing[-1].why
        return self._tried[key]

    def attempt(self, what: str, setups: Iterable[Setup], measure: Callable[[], None]) -> bool:
        """Measure something, or note why that fails; say whether it was measured.

        Where all ``setups`` that take part are this package's or torch's, that it fails is a
        failure of the run.
        """
        try:
            measure()
            return True
        except TimeLimitError:
            self.give_up([what])
        except ImportError as error:
            self._miss(what, f"not installed: {error}")
        except MemoryError as error:
            self._miss(what, str(error))
        except torch.OutOfMemoryError as error:
            self._miss(what, f"out of memory: {str(error).splitlines()[0]}")
        except Exception as error:  # a peer may fail in any way, and the run goes on
            self._miss(what, f"{type(error).__name__}: {error}".splitlines()[0])
            if all(map(_must_work, setups)) or isinstance(error, DisagreementError):
                self.failures.append(f"{what}: {error}")
        finally:
            free()
        return False

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.deadline

    def give_up(self, what: Iterable[str]) -> None:
        why = "not reached within the time limit"
        self.results.missing += [Missing(each, why) for each in what]
        self.save()

    def save(self) -> None:
        """Judge what was measured so far and write it down."""
        self.results.checks = goals.evaluate(self.results)
        if self.json is not None:
            merged(self.earlier, self.results).save(self.json)

    def _check_fits(self, shapes: str, dtype: str, subjects: int) -> None:
        per_parameter = 2 * DTYPES[dtype].itemsize + _STATE_BYTES[self.device.type]
        needed = subjects * per_parameter * numel(SHAPES[shapes])
        found = machine.free_bytes(self.device)
        if needed > found:
            raise MemoryError(
                f"may need {needed / 2**30:.1f} GiB, and {found / 2**30:.1f} GiB are free"
            )

    def _times(self, *subjects: Subject) -> list[timing.Times]:
        steps = [subject.step for subject in subjects]
        gc.disable()  # a collection would count as one optimizer's time
        try:
            return timing.in_turns(steps, self._timer, self.rounds, self.deadline)
        finally:
            gc.enable()

    def _has_row(self, setup: Setup, shapes: str, dtype: str) -> bool:
        return (setup.name, shapes, dtype) in {row.key for row in self.results.rows}

    def _add_row(self, subject: Subject, shapes: str, times: timing.Times) -> None:
        """Note what a subject took, unless an earlier pair has it already."""
        if self._has_row(subject.setup, shapes, subject.dtype):
            return
        low, median, high = timing.quartiles(times.ms)
        traffic = costs.traffic_bytes(subject)
        rate = traffic and traffic * subject.parameters / (1e6 * median)
        copy = self.results.copy
        row = Row(
            *(subject.setup.op, subject.setup.name, subject.setup.source, subject.backend),
            *(shapes, subject.dtype, subject.tensors, subject.parameters, len(times.ms)),
            ms=round(median, 4),
            ms_quartiles=[round(low, 4), round(high, 4)],
            host_us=round(timing.quartiles(times.host_us)[1], 1) if times.host_us else None,
            traffic_bytes_per_parameter=traffic and round(traffic, 2),
            gb_per_s=rate and round(rate, 2),
            copy_percent=round(100 * rate / copy.gb_per_s, 1) if rate and copy else None,
            launches=costs.launches(subject),
        )
        self.results.rows.append(row)

    def _miss(self, what: str, why: str) -> None:
        self.results.missing.append(Missing(what, why))
        self.save()


def _must_work(setup: Setup) -> bool:
    return setup.source in (OURS, "torch")
