"""The ratio of a pair, from a timer whose figures are known."""

from __future__ import annotations

import bench_package  # noqa: F401
import pytest
import torch

pytest.importorskip("pandas")

from bench import run
from bench.pairs import Pair
from bench.run import Session
from bench.setups import SETUPS
from bench.timing import Times

OURS, BASELINE = "AdamW", "torch AdamW foreach"


class Scripted:
    """A timer by which ours takes a third of the baseline's time, and a quarter of its host's."""

    ms = {OURS: (1.0, 2.0, 4.0), BASELINE: (3.0, 6.0, 12.0)}
    host_us = {OURS: 10.0, BASELINE: 40.0}

    def warm(self, step) -> None:
        step()

    def round(self, step, times: Times) -> None:
        name = step.__self__.setup.name
        times.ms.append(self.ms[name][len(times.ms)])
        times.host_us.append(self.host_us[name])


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(run.timing, "timer_for", lambda device, warm_up: Scripted())
    result = Session(torch.device("cpu"), rounds=3)
    assert {OURS, BASELINE} <= set(SETUPS)
    result.measure_pair(Pair(OURS, BASELINE, "default"), "smoke", "fp32")
    return result


def test_faster_is_more_than_one(measured: Session) -> None:
    (ratio,) = measured.results.ratios
    assert ratio.ratio == 3.0 and ratio.ratio_quartiles == [3.0, 3.0]
    assert ratio.baseline_ms == pytest.approx(3 * ratio.ours_ms)
    assert ratio.rounds == 3
    assert ratio.host_ratio == 0.25  # a share: less is better


def test_rows_have_their_own_times(measured: Session) -> None:
    times = {row.optimizer: (row.ms, row.host_us) for row in measured.results.rows}
    assert times == {OURS: (2.0, 10.0), BASELINE: (6.0, 40.0)}
