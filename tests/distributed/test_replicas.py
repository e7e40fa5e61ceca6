"""Data parallelism: replicas round stochastically, have random states of their own, stay equal."""

from pathlib import Path

import pytest
import torch
from optimizer_table import (
    assert_identical,
    every_optimizer,
    parameters,
    snapshot,
    train,
)
from processes import needs_gloo, results_of
from replica_worker import STEPS

WORKER = Path(__file__).parents[1] / "support/replica_worker.py"
OPTIONS = {"low_precision": "stochastic", "state_dtype": torch.bfloat16}


@every_optimizer
def test_steps_neither_read_nor_move_torchs_random_state(row):
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        optimizer = row.build(parameters(torch.bfloat16), **OPTIONS)
        train(optimizer, [1, 2, 3])
        assert torch.equal(torch.get_rng_state(), before)
        results.append(snapshot(optimizer))
    assert_identical(*results)


@every_optimizer
def test_the_seed_and_nothing_else_picks_the_rounding(row):
    first, same, other = (
        row.build(parameters(torch.bfloat16), **OPTIONS, seed=s) for s in (3, 3, 4)
    )
    for optimizer in (first, same, other):
        train(optimizer, [1, 2, 3, 4])
    assert_identical(snapshot(first), snapshot(same))
    pairs = zip(snapshot(first)[0], snapshot(other)[0], strict=True)
    assert any(not torch.equal(p, q) for p, q in pairs)


@needs_gloo
@pytest.mark.parametrize(
    "name",
    [
        "AdamW",
        pytest.param("Adafactor-momentum", marks=pytest.mark.long),
        pytest.param("torch-AdamW", marks=pytest.mark.long),
    ],
)
def test_replicas_of_two_processes_stay_bit_identical(name, tmp_path):
    first, second = results_of(WORKER, tmp_path, name)
    assert_identical(dict(first["model"]), dict(second["model"]))
    assert_identical(first["optimizer"], second["optimizer"])
    for state in first["optimizer"]["state"].values():
        assert state["step"] == STEPS and state["exp_avg"].dtype is torch.bfloat16
