"""DTensor parameters: a step makes of the parts what it makes of the whole tensor."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from processes import needs_gloo, results_of
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import fused_optim

pytestmark = needs_gloo
WORKER = Path(__file__).parents[1] / "support/shard_worker.py"
LANES = 33  # by which processes see that they have gradients of the same parameters


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """What the cases of the worker found: by the number of processes, by rank."""
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    return {
        count: results_of(
            WORKER, tmp_path_factory.mktemp("shards"), str(checkpoints), world_size=count
        )
        for count in (2, 1, 3, 4)
    }


@pytest.fixture(params=[2, 3, 4])
def ranks(request: pytest.FixtureRequest, runs: dict[int, list[Any]]) -> list[Any]:
    return runs[request.param]


def assert_no_differences(found: dict[str, list[str]], count: int) -> None:
    assert len(found) == count
    for case, differences in found.items():
        assert differences == [], case


def test_elementwise_updates_have_the_bits_of_the_whole(ranks: list[dict]) -> None:
    """In every mode and dtype, wherever the shards lie, empty ones and replicas among them."""
    for rank in ranks:
        assert_no_differences(rank["elementwise"], 10)


def test_adafactor_is_that_of_the_whole(ranks: list[dict]) -> None:
    for rank in ranks:
        assert_no_differences(rank["adafactor"], len(ranks[0]["adafactor"]))
        assert len(rank["adafactor"]) >= 10


@pytest.mark.long
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_every_case(world_size: int, tmp_path: Path) -> None:
    for rank in results_of(WORKER, tmp_path, str(tmp_path), "every", world_size=world_size):
        assert_no_differences(rank["elementwise"], 58)
        assert_no_differences(rank["adafactor"], 80)


@pytest.mark.skipif(torch.cuda.is_available(), reason="sends CPU tensors to kernels")
def test_kernels_hand_out_the_sums_of_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a part is empty, or its sums are not kept, eager takes it, beside kernels elsewhere."""
    import host_module  # skips where there is no C++ compiler

    monkeypatch.setenv("FUSED_OPTIM_TEST_BACKEND", "cuda")
    monkeypatch.setenv("FUSED_OPTIM_TEST_HOST_MODULE", str(host_module.path()))
    ranks = results_of(WORKER, tmp_path, str(tmp_path), "kernels", world_size=4)
    for rank in ranks:
        assert_no_differences(rank["adafactor"], len(ranks[0]["adafactor"]))
        assert rank["kernels"] > 40 and rank["eager"] > 40


def test_no_operator_sees_a_dtensor_in_a_steady_step(ranks: list[dict]) -> None:
    for found in (rank["collectives"] for rank in ranks):
        cases = [case for name, case in found.items() if name != "groups"]
        assert len(cases) == 10
        for case in cases:
            assert case["spread"] == [] and case["others"] == []


def test_all_reduces_do_not_depend_on_the_number_of_parameters(ranks: list[dict]) -> None:
    """Two for each group of ranks in Adafactor, one where gradients are clipped or checked."""
    expected = {"Adafactor": 2, "Adafactor clipped": 2, "AdamW": 0, "AdamW clipped": 1}
    expected["skipping"] = 1
    for number, rank in enumerate(ranks):
        found = rank["collectives"]
        groups = [group for group in found["groups"] if number in group]
        for name, times in expected.items():
            for count in (2, 12):
                reduced = [group for group, _ in found[f"{name} {count}"]["reduced"]]
                assert sorted(reduced) == sorted(groups * times), name


def test_all_reduces_carry_no_more_than_the_sums(ranks: list[dict]) -> None:
    """Matrices of 8 rows and 6 columns, split over all ranks by rows or by columns."""
    world = list(range(len(ranks)))
    # Sums of columns or rows; of both, the total and that of the parameter; of rows, that of the
    # old statistics too.
    by_rows, by_columns = 6 + 3, 8 + 2
    for found in (rank["collectives"] for rank in ranks):
        for count in (2, 12):
            sizes = [n for group, n in found[f"Adafactor {count}"]["reduced"] if group == world]
            assert sizes == [4 * (LANES + count * (by_rows + by_columns)), 4 * 2 * count]
            (size,) = [n for g, n in found[f"AdamW clipped {count}"]["reduced"] if g == world]
            assert size == 8 * (LANES + 2 * count)
            (size,) = [n for g, n in found[f"skipping {count}"]["reduced"] if g == world]
            assert size == 4


def test_clipping_is_by_the_norm_of_all_of_every_tensor_once(ranks: list[dict]) -> None:
    for rank in ranks:
        assert rank["clipping"]["differences"] == []
        assert len(rank["clipping"]["norms"]) == 27
        for found, expected in rank["clipping"]["norms"]:
            assert math.isclose(found, expected, rel_tol=1e-6)
        assert rank["clipping"]["norms"] == ranks[0]["clipping"]["norms"]


def test_a_step_is_left_out_by_all_ranks_if_by_one(ranks: list[dict]) -> None:
    for found in (rank["agreements"] for rank in ranks):
        for name in ("host", "device"):
            assert found[name] == {"unchanged": True, "skipped": 2, "went on": True}
        for name in ("AdamW", "capturable", "Adafactor"):
            assert found[f"found_inf {name}"], name


def test_fsdp_and_tensor_parallelism_are_that_of_the_whole(ranks: list[dict]) -> None:
    for rank in ranks:
        assert_no_differences(rank["fsdp"], 24 if len(ranks) == 4 else 18)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_any_number_of_processes_goes_on_from_a_checkpoint(runs: dict, count: int) -> None:
    """AdamW to the bit, whatever is saved how; torch's own steps differ in an ulp or two."""
    expected = runs[2][0]["checkpoints"]
    assert len(expected) == 18
    for rank in runs[count]:
        for name, weights in rank["checkpoints"].items():
            for weight, other in zip(weights, expected[name], strict=True):
                exact = "torch" not in name and "Adafactor" not in name
                rtol = 0.0 if exact else 1e-6 if weight.dtype is torch.float32 else 1e-2
                torch.testing.assert_close(weight, other, rtol=rtol, atol=rtol / 100)


MISTAKES = {
    "rates differ": "RuntimeError: .* differ: group 0's 'lr' is 0.2 on rank 0 and 0.1 on rank",
    "seeds differ": "RuntimeError: .* differ: the option 'seed' is 0 on rank 0 and 1 on rank",
    "modes differ": "RuntimeError: .* 'low_precision' is auto on rank 0 and kahan on rank",
    "orders differ": "RuntimeError: .* parameter 0 of group 0 is .*(8, 3).* on rank 0 and .*(6, 5)",
    "groups differ": "RuntimeError: .* rank 0 has parameter 1 of group 0 where rank . has group 1",
    "missing, AdamW": "RuntimeError: .* parameter 1 of group 0 is .* with a .* without a gradient",
    "state of another mesh": "ValueError: .*'exp_avg' is on the mesh of ranks .*, its parameter on",
    "state of other placements": "ValueError: .*'exp_avg' has placements .*Replicate.*, not .*Sha",
    "plain state": "ValueError: .*'exp_avg' is no DTensor and the parameter is one",
    "gradient of another mesh": "RuntimeError: .* the gradient of parameter 0 of group 0 is on the",
    "plain gradient": "RuntimeError: .* parameter 0 of group 0 is a DTensor and its gradient",
    "loaded state of another mesh": "ValueError: .*'exp_avg' is on the mesh of .*load a state of",
    "partial": "ValueError: .*parameter 0 of group 0 is a DTensor with placements .*Partial",
    "clip_group": "ValueError: clip_group has the ranks .*, over which parameters are split",
    "reports of Adafactor": "NotImplementedError: .* parameter 0 of group 0 is split over",
    "nothing differ": "nothing was raised",
    "unchecked rates differ": "nothing was raised",
    "reports": "nothing was raised",
    **{
        f"missing, {name}": "RuntimeError: .* the gradient of parameter 1 of group 0 is there on "
        "rank 0 and missing on rank .*nothing was changed"
        for name in ("clipped", "capturable", "Adafactor")
    },
}


def test_mistakes_are_told_on_every_rank(ranks: list[dict]) -> None:
    for found in (rank["refusals"] for rank in ranks):
        for name, message in MISTAKES.items():
            assert re.match(message, found[name], re.DOTALL), (name, found[name])
        for name in ("AdamW", "clipped", "capturable", "Adafactor"):
            unchanged, then, counts = found[f"missing, {name}, then"]
            assert unchanged and then == "nothing was raised"
            assert counts == ([1, 1] if name == "AdamW" else [3, 3])
        assert found["partial gradient"] <= 1e-6


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_save_that_is_killed_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    code = (
        "import os, torch, torch.distributed.checkpoint as dcp\n"
        "import fused_optim\n"
        "from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict\n"
        "model = torch.nn.Linear(3, 2)\n"
        "optimizer = fused_optim.AdamW(model.parameters())\n"
        "writer = dcp.FileSystemWriter('second')\n"
        "writer.finish = lambda **_: os._exit(9)\n"
        "for step in (1, 2):\n"
        "    model(torch.ones(1, 3)).sum().backward()\n"
        "    optimizer.step()\n"
        "    saved = {'o': get_optimizer_state_dict(model, optimizer)}\n"
        "    where = {'checkpoint_id': 'first'} if step == 1 else {'storage_writer': writer}\n"
        "    dcp.save(saved, no_dist=True, **where)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert killed.returncode == 9, killed.stderr
    model = torch.nn.Linear(3, 2)
    optimizer = fused_optim.AdamW(model.parameters())
    loaded = {"o": get_optimizer_state_dict(model, optimizer)}
    with pytest.raises(dcp.api.CheckpointException):
        dcp.load(loaded, checkpoint_id=tmp_path / "second", no_dist=True)
    dcp.load(loaded, checkpoint_id=tmp_path / "first", no_dist=True)
    set_optimizer_state_dict(model, optimizer, loaded["o"])
    for state in optimizer.state.values():
        assert state["step"] == 1 and state["exp_avg"].abs().sum() > 0
