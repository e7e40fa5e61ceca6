"""One run: what it measures, on what, and the results so far."""

import gc
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench import agreement, goals, memory, system, timing, traffic
from bench.agreement import DisagreementError
from bench.pairs import Pair
from bench.results import Copy, Missing, Ratio, Results, Row, merged, quotient
from bench.setups import DTYPES, OURS, PEERS, SETUPS, Setup
from bench.shapes import SHAPES, numel
from bench.subject import Subject, free

# Of state per parameter: two float32 moments and a master. On a CPU as much again for temporaries,
# for there is no running out of memory that one could recover from.
_STATE_BYTES = {"cuda": 12, "cpu": 24}


@dataclass
class Session:
    """What a run measures with, and what it found: on disk after each measurement."""

    device: torch.device
    rounds: int  # steps of each optimizer
    backend: str | None = None  # of this package's optimizers; None leaves it to them
    json: Path | None = None
    earlier: Results | None = None  # to keep in that file beside this run's
    deadline: float = math.inf  # in terms of time.monotonic
    warm_up: float = 0.2  # seconds before each measurement
    failures: list[str] = field(default_factory=list)
    _tried: dict[tuple[str, str], str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.results = Results(system.describe(self.device, PEERS))
        self._timer = timing.timer_for(self.device, self.warm_up)

    def measure_copy(self) -> None:
        """Measure the bandwidth that rows are compared with."""
        rates, size = timing.copy_bandwidth(self.device, self._timer, max(self.rounds, 5))
        low, median, high = (round(rate, 2) for rate in timing.quartiles(rates))
        self.results.copy = Copy(median, size, [low, high])
        self.save()

    def measure_pair(self, pair: Pair, shapes: str, dtype: str) -> None:
        """Time two setups in turns, after a check that they agree where they should."""
        ours, baseline = self._subjects(shapes, dtype, SETUPS[pair.ours], SETUPS[pair.baseline])
        if pair.kind == "equal semantics":
            agreement.check(ours, baseline, f"{pair} ({shapes}, {dtype})")
        own, theirs = self._times(shapes, ours, baseline)
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
        if not self._has_row(setup, shapes, dtype):
            self._times(shapes, *self._subjects(shapes, dtype, setup))
            self.save()

    def measure_memory(self, setup: Setup, shapes: str, dtype: str) -> None:
        """Measure a setup's memory in a process of its own."""
        self._check_fits(shapes, dtype, 1)
        free()
        left = min(self.deadline - time.monotonic(), 1e6)
        where = (shapes, dtype, str(self.device), self.backend)
        self.results.memory.append(memory.isolated(setup.name, where, left))
        self.save()

    def why_not(self, setup: Setup, dtype: str) -> str | None:
        """Try a peer once, on a few small tensors, and return why it can't be measured here."""
        key = (setup.name, dtype)
        if key not in self._tried and not _must_work(setup):

            def trial() -> None:
                subject = Subject(setup, "smoke", dtype, self.device)
                for _ in range(2):
                    subject.step()

            done = self.attempt(f"{setup.name}, {dtype}", (setup,), trial)
            self._tried[key] = None if done else self.results.missing[-1].why
        return self._tried.get(key)

    def attempt(self, what: str, setups: Iterable[Setup], measure: Callable[[], None]) -> bool:
        """Measure something, or note why that fails; say whether it was measured.

        Where all ``setups`` that take part are this package's or torch's, that it fails is a
        failure of the run.
        """
        try:
            measure()
            return True
        except TimeoutError:
            self.give_up([what])
        except ImportError as error:
            self._miss(what, f"not installed: {error}")
        except (MemoryError, torch.OutOfMemoryError) as error:
            self._miss(what, f"out of memory: {error}")
        except Exception as error:  # a peer may fail in any way, and the run goes on
            self._miss(what, f"{type(error).__name__}: {error}")
            if all(map(_must_work, setups)) or isinstance(error, DisagreementError):
                self.failures.append(f"{what}: {error}")
        finally:
            free()
        return False

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.deadline

    def give_up(self, what: Iterable[str]) -> None:
        for each in what:
            self.results.missing.append(Missing(each, "not reached within the time limit"))
        self.save()

    def _miss(self, what: str, why: str) -> None:
        self.results.missing.append(Missing(what, why.splitlines()[0]))
        self.save()

    def save(self) -> None:
        """Judge what was measured so far and write it down."""
        self.results.checks = goals.evaluate(self.results)
        if self.json is not None:
            merged(self.earlier, self.results).save(self.json)

    def _check_fits(self, shapes: str, dtype: str, subjects: int) -> None:
        per_parameter = 2 * DTYPES[dtype].itemsize + _STATE_BYTES[self.device.type]
        needed = subjects * per_parameter * numel(SHAPES[shapes])
        found = system.free_bytes(self.device)
        if needed > found:
            raise MemoryError(
                f"may need {needed / 2**30:.1f} GiB, and {found / 2**30:.1f} GiB are free"
            )

    def _subjects(self, shapes: str, dtype: str, *setups: Setup) -> list[Subject]:
        self._check_fits(shapes, dtype, len(setups))
        return [Subject(each, shapes, dtype, self.device, self.backend) for each in setups]

    def _times(self, shapes: str, *subjects: Subject) -> list[timing.Times]:
        """Time subjects in turns, and note a row of each that an earlier pair has not."""
        gc.disable()  # a collection would count as one optimizer's time
        try:
            steps = [subject.step for subject in subjects]
            found = timing.in_turns(steps, self._timer, self.rounds, self.deadline)
        finally:
            gc.enable()
        for subject, times in zip(subjects, found, strict=True):
            if not self._has_row(subject.setup, shapes, subject.dtype):
                self.results.rows.append(self._row(subject, shapes, times))
        return found

    def _has_row(self, setup: Setup, shapes: str, dtype: str) -> bool:
        return (setup.name, shapes, dtype) in {row.key for row in self.results.rows}

    def _row(self, subject: Subject, shapes: str, times: timing.Times) -> Row:
        low, median, high = timing.quartiles(times.ms)
        moved = traffic.traffic_bytes(subject)
        rate = moved and moved * subject.parameters / (1e6 * median)
        copy = self.results.copy
        return Row(
            *(subject.setup.op, subject.setup.name, subject.setup.source, subject.backend),
            *(shapes, subject.dtype, subject.tensors, subject.parameters, len(times.ms)),
            ms=round(median, 4),
            ms_quartiles=[round(low, 4), round(high, 4)],
            host_us=round(timing.quartiles(times.host_us)[1], 1) if times.host_us else None,
            traffic_bytes_per_parameter=moved and round(moved, 2),
            gb_per_s=rate and round(rate, 2),
            copy_percent=round(100 * rate / copy.gb_per_s, 1) if rate and copy else None,
            launches=traffic.launches(subject),
        )


def _must_work(setup: Setup) -> bool:
    return setup.source in (OURS, "torch")
