"""One of the processes that hold parts of parameters: all cases, one after another."""

from __future__ import annotations

import warnings
from pathlib import Path

import checkpoint_shards
import elementwise_shards
import fsdp_shards
import refused_shards
import statistics_shards
from processes import finish, join
from shards import meshes


def main() -> None:
    """Run every case with the same meshes; results are by the case's name."""
    warnings.simplefilter("error")
    # torch's own, of FSDP2 on CPUs and beside tensor parallelism.
    warnings.filterwarnings("ignore", "DTensor random operators|FSDP2-wrapped module")
    _, (folder, *more) = join()
    known, every = meshes(), "every" in more
    if not known:  # one process, whose tensors are whole
        finish({"checkpoints": checkpoint_shards.checkpoints(Path(folder), known)})
        return
    if "kernels" in more:
        finish(statistics_shards.on_kernels(known))
        return
    results = {
        "elementwise": elementwise_shards.differences(known, every=every),
        "adafactor": statistics_shards.adafactor(known, every=every),
    }
    if not every:
        for case in (
            statistics_shards.collectives,
            statistics_shards.clipping,
            statistics_shards.agreements,
            fsdp_shards.fsdp,
            refused_shards.refusals,
        ):
            results[case.__name__] = case(known)
        results["checkpoints"] = checkpoint_shards.checkpoints(Path(folder), known)
    finish(results)


if __name__ == "__main__":
    main()
