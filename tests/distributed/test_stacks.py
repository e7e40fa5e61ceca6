"""Training stacks on two processes: the update of the whole model, and resumed to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from optimizer_table import assert_identical
from processes import needs_gloo, results_of
from tolerances import assert_step_close

pytestmark = needs_gloo
WORKER = Path(__file__).parents[1] / "support/stacks_worker.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the stacks of the worker found, by rank."""
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("stacks")
    return results_of(WORKER, folder, str(folder))


@pytest.mark.parametrize("stack", ["accelerated", "titan", "zero"])
def test_a_stack_takes_the_steps_of_the_whole_and_resumes(ranks: list[dict], stack: str) -> None:
    for rank in ranks:
        assert len(rank[stack]) > 2
        for name, found in rank[stack].items():
            assert_identical(found["resumed"], found["went on"])
            assert any(
                not torch.equal(*two) for two in zip(found["went on"], found["after"], strict=True)
            )
            if "Adafactor" not in name:
                assert_identical(found["after"], found["whole"])
                continue
            for mine, whole in zip(found["after"], found["whole"], strict=True):
                assert_step_close(mine, whole, 0.1, whole.dtype)


def test_accelerate_hands_out_dtensors_and_its_schedule_goes_on(ranks: list[dict]) -> None:
    for rank in ranks:
        for found in rank["accelerated"].values():
            assert found["kinds"] == ["DTensor"]
            assert found["same rates"] and not found["skipped"]


def test_the_loop_of_model_parts_goes_on_where_it_was(ranks: list[dict]) -> None:
    for rank in ranks:
        for found in rank["titan"].values():
            assert found["steps"] == [5, 5]
            mine, resumed = found["rates"]
            assert mine == resumed and len(mine) == 2
