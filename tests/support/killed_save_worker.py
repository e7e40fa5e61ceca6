"""One of two processes that save a checkpoint, and a second one that never ends."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from fsdp_shards import before
from processes import join
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import fused_optim


class Stalled(dcp.FileSystemWriter):
    """A writer that has written its files, says so, and waits for ever before the metadata."""

    def __init__(self, folder: Path, written: Path) -> None:
        super().__init__(folder)
        self.written = written

    def write_data(self, plan: Any, planner: Any) -> Any:
        super().write_data(plan, planner).wait()
        self.written.touch()
        time.sleep(600)


def main() -> None:
    """Save the state of the first step, and begin to save that of the second."""
    rank, (folder,) = join()
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    model, optimizer = before(fused_optim.AdamW, mesh=mesh)
    stalled = Stalled(Path(folder) / "second", Path(folder) / f"written.{rank}")
    for where in ({"checkpoint_id": Path(folder) / "first"}, {"storage_writer": stalled}):
        model(torch.ones(4, 8)).square().sum().backward()
        optimizer.step()
        dcp.save({"o": get_optimizer_state_dict(model, optimizer)}, **where)


if __name__ == "__main__":
    main()
