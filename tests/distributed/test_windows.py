"""Windows of micro-batches over two replicas: their float32 sums are averaged in the step."""

from __future__ import annotations

from pathlib import Path

import torch
from processes import needs_gloo, results_of

SUPPORT = Path(__file__).parents[1] / "support"
WORKER, SHARDED = SUPPORT / "windows_worker.py", SUPPORT / "sharded_windows_worker.py"


@needs_gloo
def test_two_replicas_are_one_process_with_all_micro_batches(tmp_path: Path) -> None:
    first, second = results_of(WORKER, tmp_path)
    for result in (first, second):
        assert "run every micro-batch in model.no_sync()" in result["refused"]
        for p, q in zip(result["trained"], result["expected"], strict=True):
            torch.testing.assert_close(p, q, rtol=2**-7, atol=1e-6)  # sums in another order
    for p, q in zip(first["trained"], second["trained"], strict=True):
        assert torch.equal(p, q)


@needs_gloo
def test_gradients_of_fsdp2_are_taken_as_they_arrive(tmp_path: Path) -> None:
    """float32 sums equal those made by hand, and steps in the backward pass those after it.

    FSDP2 has averaged the gradients over the processes, so that a second mean is refused.
    """
    for found in results_of(SHARDED, tmp_path):
        for name in ("AdamW", "Adafactor"):
            assert found[name] == {"counted": [4, 4], "differences": []}, name
        assert "is a DTensor" in found["refused"] and found["untouched"]
        for steps in found["at once"]:
            assert steps == {"freed": [True] * 3, "moved": True, "differences": []}
