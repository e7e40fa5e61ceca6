"""Real training in 16 bits: the committed curves, the page that shows them, and a live run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import precision_page
import pytest
import torch
import written_pages

import fused_optim
from fused_optim import torch_compat

ROOT = Path(__file__).resolve().parents[2]
STALLING = ("nearest", None)  # None is torch.optim's

LIVE_MARGIN = 0.02
"""Nats per byte beyond the span of three float32 seeds that a live run may end; stalling runs are
more than five times as far off."""

RESULTS: dict[str, Any] = json.loads(precision_page.RESULTS.read_text())
LOW = [run for run in RESULTS["runs"] if run["dtype"] != "float32"]
each_run = pytest.mark.parametrize("run", LOW, ids=lambda run: run["name"])


# --- the committed curves -------------------------------------------------------------------------


def test_the_page_shows_what_was_measured() -> None:
    page = precision_page.PAGE.read_text()
    assert precision_page.training_table(RESULTS) in page
    assert "| bfloat16, `split` | 12 |" in page
    quick = {name: precision_page.TABLES[name] for name in ("training", "memory")}
    assert written_pages.filled(page, quick) == page


def test_the_file_is_complete_and_small() -> None:
    assert precision_page.RESULTS.stat().st_size < 200_000
    reference = [run for run in RESULTS["runs"] if run["dtype"] == "float32"]
    for family in ("adamw", "adafactor"):
        assert sorted(r["seed"] for r in reference if r["optimizer"] == family) == [0, 1, 2, 3, 4]
    kept = {(run["optimizer"], run["mode"], run["state_dtype"]) for run in LOW}
    assert kept == {
        *(("adamw", mode, "float32") for mode in ("split", "kahan", "stochastic", "nearest")),
        *(("adamw", mode, "bfloat16") for mode in ("split", "stochastic", None)),
        ("adafactor", "split", None),
    }
    for run in RESULTS["runs"]:
        assert run["steps"][-1] == RESULTS["settings"]["steps"]
        assert len(run["steps"]) == len(run["losses"])
        assert run["final_loss"] == run["losses"][-1]


@each_run
def test_modes_that_keep_updates_end_within_the_span_of_float32(run: dict[str, Any]) -> None:
    low, high = precision_page.span(RESULTS, run["optimizer"])
    if run["mode"] in STALLING:
        assert run["final_loss"] > high + 5 * (high - low)
    else:
        assert low <= run["final_loss"] <= high
        assert abs(run["final_loss"] - precision_page.same_seed(RESULTS, run)) < 0.005


@each_run
def test_bytes_of_the_runs_are_those_of_the_state(run: dict[str, Any]) -> None:
    module, _, name = re.match(r"[\w.]+", run["name"]).group().rpartition(".")
    owner = {"": fused_optim, "torch_compat": torch_compat, "torch.optim": torch.optim}[module]
    options = {}
    if not module:
        options["low_precision"] = run["mode"]
        options["state_dtype"] = getattr(torch, run["state_dtype"] or "float32")
    expected = precision_page.stored_bytes(getattr(owner, name), options, torch.bfloat16)
    assert expected <= run["bytes_per_parameter"] < expected + 0.1


# --- a live run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def precision() -> Any:
    """The example's module, which is imported from the checkout."""
    before = list(sys.path)
    sys.path.append(str(ROOT / "examples" / "demo"))
    import precision

    yield precision
    sys.path[:] = before


@pytest.fixture(scope="module")
def tiny(precision: Any) -> tuple[Any, Any]:
    """Settings of a run of seconds, and the text."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = precision.Settings(
        layers=1, width=16, heads=2, context=32, batch=8, steps=200, warmup_steps=10,
        lr_adamw=2e-3, evaluate_every=200, evaluation_windows=256,
    )  # fmt: skip
    yield settings, precision.load_corpus()
    torch.set_num_threads(threads)


def recipe(precision: Any, name: str) -> Any:
    return next(r for r in precision.RECIPES if r.name == name)


@pytest.fixture(scope="module")
def float32_losses(precision: Any, tiny: tuple[Any, Any]) -> list[float]:
    reference = recipe(precision, "AdamW float32")
    return [precision.train(reference, seed, *tiny)["final_loss"] for seed in range(3)]


@pytest.mark.parametrize(
    "name",
    [
        "AdamW split",
        "torch_compat.AdamW",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("AdamW kahan", "AdamW stochastic", "AdamW split, bfloat16 moments")
        ),
    ],
)
def test_learns_as_float32_does(
    precision: Any, tiny: tuple[Any, Any], float32_losses: list[float], name: str
) -> None:
    loss = precision.train(recipe(precision, name), 0, *tiny)["final_loss"]
    assert min(float32_losses) - LIVE_MARGIN <= loss <= max(float32_losses) + LIVE_MARGIN


@pytest.mark.parametrize(
    "name", ["torch.optim.AdamW", pytest.param("AdamW nearest", marks=pytest.mark.long)]
)
def test_stalls_where_updates_are_rounded_away(
    precision: Any, tiny: tuple[Any, Any], float32_losses: list[float], name: str
) -> None:
    loss = precision.train(recipe(precision, name), 0, *tiny)["final_loss"]
    assert loss > max(float32_losses) + 5 * LIVE_MARGIN


def test_a_measurement_goes_on_where_it_was(
    precision: Any, tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    settings, corpus = tiny
    path = tmp_path / "new" / "curves.json"
    results = precision.load(path, settings, corpus)
    todo = list(precision.pending(results))
    assert [(r.name, seed) for r, seed in todo].count(("AdamW split", 0)) == 1
    assert len(todo) == len(RESULTS["runs"])
    for r, seed in reversed(todo[-3:]):
        done = {"name": r.name, "seed": seed, "losses": [1.0]}
        results["runs"].append(done)
        precision.save(results, path)
    again = precision.load(path, settings, corpus)
    assert list(precision.pending(again)) == todo[:-3]
    assert [(run["name"], run["seed"]) for run in again["runs"]] == [
        (r.name, seed) for r, seed in todo[-3:]
    ]
    with pytest.raises(ValueError, match="holds runs with the settings .* name another file"):
        precision.load(path, precision.Settings(), corpus)


def test_the_command_draws_what_it_measured(
    precision: Any, tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is pending but one run, and the picture follows it."""
    pytest.importorskip("matplotlib")
    settings, corpus = tiny
    monkeypatch.setattr(precision, "Settings", lambda: settings)
    monkeypatch.setattr(precision, "load_corpus", lambda: corpus)
    monkeypatch.setattr(precision, "RECIPES", [recipe(precision, "AdamW split")])
    files = ("--json", str(tmp_path / "c.json"), "--image", str(tmp_path / "c.png"))
    threads = torch.get_num_threads()
    try:
        assert precision.main([*files]) == 0
    finally:
        torch.set_num_threads(threads)
    (run,) = json.loads((tmp_path / "c.json").read_text())["runs"]
    assert (run["name"], run["mode"]) == ("AdamW split", "split")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_the_picture_is_of_the_results(precision: Any) -> None:
    """The float32 runs are a band, every other run of AdamW is a line, and every run has an end."""
    pytest.importorskip("matplotlib")
    from precision_plot import picture

    losses, ends = picture(RESULTS).axes
    runs = [run for run in LOW if run["optimizer"] == "adamw"]
    late = {tuple(line.get_ydata()): line.is_dashed() for line in losses.lines}
    assert late == {tuple(run["losses"][2:]): run["mode"] in STALLING for run in runs}
    (band,) = losses.collections
    low, high = precision_page.span(RESULTS, "adamw")
    last = [y for x, y in band.get_paths()[0].vertices if x == RESULTS["settings"]["steps"]]
    assert (min(last), max(last)) == (low, high)
    shown = sorted(line.get_xdata()[0] for line in ends.lines)
    assert shown == sorted(run["final_loss"] for run in RESULTS["runs"])
    names = list(dict.fromkeys(run["name"] for run in RESULTS["runs"]))
    assert [label.get_text().split("  ·")[0] for label in ends.get_yticklabels()] == names


def test_products_are_those_of_bfloat16_hardware(precision: Any, tiny: tuple[Any, Any]) -> None:
    """Float32 between roundings is close to torch's own bfloat16, which rounds more often."""
    settings, corpus = tiny
    trained = precision.Trained(recipe(precision, "AdamW split"), 0, settings, corpus)
    batch = corpus.batch(0, 0, settings.batch, settings.context)
    trained.loss(*batch).backward()
    emulated = {name: p.grad for name, p in trained.stored.named_parameters()}
    assert {g.dtype for g in emulated.values()} == {torch.bfloat16}
    trained.stored.zero_grad()
    plain = precision.GPT(trained_config(precision, settings)).bfloat16()
    plain.load_state_dict(trained.stored.state_dict())
    plain(*batch).backward()
    for name, p in plain.named_parameters():
        error = (p.grad.float() - emulated[name].float()).norm() / emulated[name].float().norm()
        assert error < 0.05, name


def trained_config(precision: Any, settings: Any) -> Any:
    return precision.GPTConfig(settings.layers, settings.width, settings.heads, settings.context)
