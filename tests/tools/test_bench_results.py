"""The result file, the goals, and the verdicts drawn from both."""

from __future__ import annotations

import json
from pathlib import Path

import bench_package  # noqa: F401
import pytest

pytest.importorskip("pandas")

from bench import ROOT, goals, results
from bench.goals import GOALS
from bench.results import Check, Copy, Memory, Missing, Ratio, Results, Row
from bench.system import Machine

CPU_RESULTS = ROOT / "bench" / "results" / "cpu-2core" / "results.json"


def made_up(device: str = "cuda") -> Results:
    machine = Machine(
        date="2030-01-01",
        commit="abc",
        fused_optim="1",
        torch="2",
        triton=None,
        cuda=None,
        driver=None,
        python="3",
        cpu="some",
        cores=2,
        threads=2,
        device=device,
    )
    return Results(machine, copy=Copy(1000.0, 2**30, [990.0, 1010.0]))


def row(**changes: object) -> Row:
    values = {
        "op": "adamw",
        "optimizer": "AdamW",
        "source": "fused_optim",
        "backend": "cuda",
        "shapes": "llama-8b-2l",
        "dtype": "bf16",
        "tensors": 21,
        "parameters": 1_486_901_248,
        "rounds": 9,
        "ms": 10.0,
        "ms_quartiles": [9.0, 11.0],
    }
    return Row(**{**values, **changes})


def ratio(**changes: object) -> Ratio:
    values = {
        "ours": "torch_compat.AdamW",
        "baseline": "torch AdamW fused",
        "shapes": "tiny-1000",
        "dtype": "fp32",
        "kind": "equal semantics",
        "parameters": 10,
        "baseline_ms": 2.0,
        "ours_ms": 1.0,
        "rounds": 9,
        "ratio": 2.0,
        "ratio_quartiles": [1.9, 2.1],
    }
    return Ratio(**{**values, **changes})


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    saved = made_up()
    saved.rows, saved.ratios = [row(launches=1)], [ratio(goal=3, floor=1.5)]
    saved.memory = [Memory("AdamW", "fused_optim", "smoke", "fp32", 10, 8.0, 12.0, 5)]
    saved.checks = [Check("a", 1.0, "x", 2.0, None, False, True)]
    saved.missing = [Missing("b", "c")]
    path = tmp_path / "new" / "file.json"
    saved.save(path)
    assert results.load(path) == saved
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_keys_that_do_not_apply_are_null(tmp_path: Path) -> None:
    saved = made_up()
    saved.rows = [row()]
    saved.save(tmp_path / "file.json")
    data = json.loads((tmp_path / "file.json").read_text())
    assert data["rows"][0]["host_us"] is None and data["machine"]["gpu"] is None
    assert data["format"] == results.FORMAT


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text('{"machine": {}, "rounds": 9, "rows": []}')
    with pytest.raises(ValueError, match="has format None, and format 2 is needed"):
        results.load(path)
    path.write_text("no JSON")
    with pytest.raises(ValueError, match="is no JSON"):
        results.load(path)
    made_up().save(path)
    data = json.loads(path.read_text())
    data["missing"] = [{"what": "a", "reason": "b"}]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"missing\[0\] lacks \['why'\] .* \['reason'\]"):
        results.load(path)


def test_ratios_of_format_1_are_made_those_of_their_times(tmp_path: Path) -> None:
    """And judged again: 30 ms against 33 were said to be 0.99, which reaches a floor of 0.98."""
    path, saved = tmp_path / "file.json", made_up()
    saved.ratios = [ratio(baseline_ms=30.35, ours_ms=32.97, ratio=0.987, goal=1.0, floor=0.98)]
    saved.checks = [saved.ratios[0].check(), Check("build", 9.0, "s", 30.0, None, True, True)]
    assert saved.checks[0].above_floor
    saved.save(path)
    assert results.load(path) == saved
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    found = results.load(path)
    assert found.ratios[0].ratio == 0.921
    assert [(c.value, c.met, c.above_floor) for c in found.checks] == [
        (0.921, False, False),
        (9.0, True, True),
    ]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    made_up().save(path)
    before = path.read_text()
    broken = made_up()
    broken.rows = [row(ms=object())]
    with pytest.raises(TypeError):
        broken.save(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_committed_results_carry_their_verdicts() -> None:
    found = results.load(CPU_RESULTS)
    assert found.checks == goals.evaluate(found) != []


@pytest.mark.parametrize(
    ("value", "met", "above"), [(1.2, True, True), (1.05, False, True), (0.99, False, False)]
)
def test_a_goal_to_exceed(value: float, met: bool, above: bool) -> None:
    check = GOALS["adamw large"].check(value, "somewhere")
    assert (check.name, check.goal, check.floor) == ("adamw large: somewhere", 1.15, 1)
    assert (check.met, check.above_floor) == (met, above)


@pytest.mark.parametrize(
    ("value", "met", "above"), [(0.2, True, True), (0.4, False, True), (0.6, False, False)]
)
def test_a_goal_to_stay_below(value: float, met: bool, above: bool) -> None:
    check = GOALS["host time"].check(value)
    assert (check.met, check.above_floor) == (met, above)


def test_every_floor_is_easier_than_its_goal() -> None:
    for goal in GOALS.values():
        assert goal.floor is None or goal.check(goal.floor).above_floor
        assert goal.check(goal.goal).met and goal.check(goal.goal).above_floor


def test_verdicts_on_a_gpu_run() -> None:
    run = made_up()
    run.rows = [
        row(copy_percent=93.0, launches=1),
        row(optimizer="Adafactor T5 stochastic", op="adafactor", copy_percent=70.0, launches=6),
        row(optimizer="Lion", op="lion", copy_percent=60.0, launches=1),
        row(optimizer="AdamW clipped", copy_percent=60.0, launches=4),  # no goal for it
        row(optimizer="torch AdamW fused", source="torch", copy_percent=50.0, launches=7),
        row(shapes="tiny-1000", parameters=49_451_500, copy_percent=40.0, launches=2),
    ]
    run.ratios = [ratio(goal=3.0, floor=1.5, host_ratio=0.3)]
    run.memory = [
        Memory("AdamW", "fused_optim", "smoke", "bf16", 10, 10.0, 12.0, 17 * 2**20),
        Memory("torch AdamW foreach", "torch", "smoke", "bf16", 10, 4.0, 6.0, 2**30),
    ]
    verdicts = {c.name: (c.met, c.above_floor) for c in goals.evaluate(run)}
    assert verdicts == {
        "adamw bandwidth: AdamW, llama-8b-2l, bf16": (True, True),
        "adafactor bandwidth: Adafactor T5 stochastic, llama-8b-2l, bf16": (False, False),
        "adamw launches: AdamW, llama-8b-2l, bf16": (True, True),
        "lion bandwidth: Lion, llama-8b-2l, bf16": (False, False),
        "lion launches: Lion, llama-8b-2l, bf16": (True, True),
        "adafactor launches: Adafactor T5 stochastic, llama-8b-2l, bf16": (False, False),
        "adamw launches: AdamW, tiny-1000, bf16": (False, False),
        "torch_compat.AdamW vs torch AdamW fused, tiny-1000, fp32": (False, True),
        "host time: torch_compat.AdamW, tiny-1000, fp32": (False, True),
        "transient memory: AdamW, smoke, bf16": (False, False),
    }


def test_a_cpu_run_is_held_to_its_ratios_alone() -> None:
    run = made_up("cpu")
    run.rows, run.ratios = [row(copy_percent=10.0)], [ratio(goal=1.0, floor=0.98)]
    assert [check.name for check in goals.evaluate(run)] == [
        "torch_compat.AdamW vs torch AdamW fused, tiny-1000, fp32"
    ]
