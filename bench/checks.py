"""The verdict on a run: every goal that its figures speak to."""

from __future__ import annotations

from bench import shapes
from bench.goals import GOALS
from bench.results import Check, Memory, Results, Row
from bench.setups import OURS, SETUPS

_LARGE_NUMEL = 100_000_000
_TRANSIENT_BYTES = 16 * 2**20


def evaluate(results: Results) -> list[Check]:
    """Return the checks of all that was measured. Ratios carry their goals themselves."""
    checks = [check for ratio in results.ratios if (check := ratio.check())]
    if results.machine.device == "cuda":
        checks += [*_bandwidth(results), *_launches(results), *_host_time(results)]
        checks += _transient_memory(results)
    return checks


def _bandwidth(results: Results) -> list[Check]:
    """AdamW on big lists; Adafactor on large bf16 lists without extra state."""
    checks = []
    for row in results.rows:
        if row.source != OURS or row.copy_percent is None or row.parameters < _LARGE_NUMEL:
            continue
        adafactor = row.op == "adafactor"
        if adafactor and (row.dtype != "bf16" or row.shapes not in shapes.LARGE):
            continue
        if "max_grad_norm" in SETUPS[row.optimizer].options:  # one more pass, and no goal for it
            continue
        goal = GOALS["adafactor bandwidth" if adafactor else "adamw bandwidth"]
        checks.append(goal.check(row.copy_percent, _case(row)))
    return checks


def _launches(results: Results) -> list[Check]:
    """Every setup's tensors make one bucket."""
    return [
        GOALS[f"{row.op} launches"].check(row.launches, _case(row))
        for row in results.rows
        if row.source == OURS
        and row.launches is not None
        and "max_grad_norm" not in SETUPS[row.optimizer].options
    ]


def _host_time(results: Results) -> list[Check]:
    return [
        GOALS["host time"].check(r.host_ratio, f"{r.ours}, {r.shapes}, {r.dtype}")
        for r in results.ratios
        if r.host_ratio is not None
        and r.shapes == "tiny-1000"
        and r.baseline == "torch AdamW fused"
    ]


def _transient_memory(results: Results) -> list[Check]:
    checks = []
    for row in results.memory:
        if row.source == OURS and row.transient_bytes is not None:
            stored = (row.bytes_per_parameter - row.state_bytes_per_parameter) * row.parameters
            limit = max(0.01 * stored, _TRANSIENT_BYTES)
            share = round(row.transient_bytes / limit, 4)
            checks.append(GOALS["transient memory"].check(share, _case(row)))
    return checks


def _case(row: Row | Memory) -> str:
    return f"{row.optimizer}, {row.shapes}, {row.dtype}"
