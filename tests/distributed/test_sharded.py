"""Gradients and state that are spread over processes: exact, or refused with the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from optimizer_table import assert_identical
from processes import needs_gloo, results_of

import fused_optim

pytestmark = needs_gloo
WORKER = Path(__file__).parents[1] / "support/sharded_worker.py"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the cases of the worker found, by rank."""
    return results_of(WORKER, tmp_path_factory.mktemp("sharded"))


@pytest.mark.parametrize("how", ["ZeRO", "FSDP1", "FSDP1 Keras"])
def test_a_clip_group_gives_the_norm_of_all_parts(ranks: list[dict], how: str) -> None:
    for found in (rank["clipping"] for rank in ranks):
        torch.testing.assert_close(found[f"{how} norm"], found["whole norm"], rtol=1e-6, atol=0)
        if how != "FSDP1 Keras":  # whose step is another optimizer's
            torch.testing.assert_close(found[how], found["whole"], rtol=1e-6, atol=1e-7)
    norms = [rank["clipping"][f"{how} norm"] for rank in ranks]
    assert torch.equal(*norms)


def test_clipping_a_shard_by_its_own_norm_is_refused(ranks: list[dict]) -> None:
    for found in (rank["clipping"] for rank in ranks):
        for case in ("no clip_group", "Adafactor", "clipnorm"):
            message = found[f"refused, {case}"]
            assert message.startswith("RuntimeError: "), message
            assert "parameter 0 of group 0 is a shard of FullyShardedDataParallel's" in message
            assert "clip_group=" in message and "model.clip_grad_norm_()" in message
        assert found["unchanged"]


def test_flat_shards_go_without_factors_and_adafactor_says_so_once(ranks: list[dict]) -> None:
    for found in (rank["flat_adafactor"] for rank in ranks):
        for name, key in (("Adafactor", "exp_avg_sq"), ("torch_compat", "variance")):
            assert found[name]["state"] == [key] and found[name]["moved"]
            (told,) = found[name]["told"]
            assert "full second moment" in told and "fully_shard keeps matrices" in told


def test_ranks_without_gradients_take_part_in_the_norm(ranks: list[dict]) -> None:
    for rank in ranks:
        norms = rank["no_gradients_here"]["norms"]
        assert norms == pytest.approx([12**0.5, 12**0.5, 24**0.5], rel=1e-6)


@pytest.mark.parametrize(
    "setup", ["split", "kahan", "master", "fp16 moment", "8 bytes", "torch_compat", "Adafactor"]
)
def test_fsdp1_gathers_the_state_of_16_bit_parameters_to_the_bit(
    ranks: list[dict], setup: str
) -> None:
    for rank in ranks:
        at_save, loaded, went_on, resumed = rank["state_dicts"][setup]
        assert_identical(loaded, at_save)
        assert_identical(resumed, went_on)
        assert "RMS" not in rank["state_dicts"][f"{setup} keys"]


def test_every_bit_of_a_remainder_passes_through_collectives(ranks: list[dict]) -> None:
    for rank in ranks:
        assert all(rank["every_bit_pattern"].values()), rank["every_bit_pattern"]


@pytest.mark.parametrize("group", ["world", 0, torch.device("cpu")])
def test_what_is_no_process_group_is_refused(group: Any) -> None:
    with pytest.raises(TypeError, match="Invalid clip_group: .* - should be a process group"):
        fused_optim.AdamW([torch.nn.Parameter(torch.ones(2))], clip_group=group)
