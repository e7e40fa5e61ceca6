"""Processes that are killed in the middle of a save leave the checkpoint before it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed.checkpoint as dcp
from fsdp_shards import network
from processes import needs_gloo
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import fused_optim

WORKER = Path(__file__).parents[1] / "support/killed_save_worker.py"


@needs_gloo
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_processes_killed_in_a_save_leave_the_checkpoint_before_it(tmp_path: Path) -> None:
    command = [sys.executable, str(WORKER)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    deadline = time.monotonic() + 120
    while (
        len(list(tmp_path.glob("written.*"))) < 2
        and all(process.poll() is None for process in processes)
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    for process in processes:
        process.kill()
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2, outputs
    assert len(list(tmp_path.glob("written.*"))) == 2, outputs
    assert len(list((tmp_path / "second").glob("*.distcp"))) == 2

    model = network()
    optimizer = fused_optim.AdamW(model.parameters())
    loaded = {"o": get_optimizer_state_dict(model, optimizer)}
    with pytest.raises(dcp.api.CheckpointException):
        dcp.load(loaded, checkpoint_id=tmp_path / "second", no_dist=True)
    dcp.load(loaded, checkpoint_id=tmp_path / "first", no_dist=True)
    set_optimizer_state_dict(model, optimizer, loaded["o"])
    assert len(optimizer.state) == 5
    for state in optimizer.state.values():
        assert state["step"] == 1 and state["exp_avg"].abs().sum() > 0
