"""The figures that this package is built to reach, by name, and the verdict on a run.

A goal is what is aimed at; below its floor a run fails. GPU goals are for one H200, as ratios
within one run, so that they hold on other GPUs too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.results import Check, Memory, Results, Row
from bench.setups import OURS, SETUPS
from bench.shapes import LARGE, MANY_SMALL, SHAPES


@dataclass(frozen=True)
class Goal:
    """A value to reach; units are ``x`` for ratios of times, above 1 where this one is faster."""

    name: str  # by which pairs and checks refer to it
    what: str  # is measured
    unit: str
    goal: float
    floor: float | None = None  # below which a run fails
    at_most: bool = False  # the value should be low, not high
    # Of a ratio: where it holds.
    device: str = "cuda"
    shapes: tuple[str, ...] = tuple(SHAPES)
    dtypes: tuple[str, ...] = ("fp32", "bf16")

    def check(self, value: float, case: str = "") -> Check:
        """Return the verdict on a measured value; ``case`` tells several of one goal apart."""
        name = f"{self.name}: {case}" if case else self.name
        sign = -1 if self.at_most else 1
        bounds = (self.goal, self.floor)
        verdicts = (bound is None or sign * value >= sign * bound for bound in bounds)
        return Check(name, value, self.unit, *bounds, *verdicts)


_PERCENT = "% of copy bandwidth"
_HOST = "host time of a step of 1,000 tensors, as a share of torch fused's"
_TRANSIENT = (
    "memory that a step takes and gives back, as a share of its limit: 1 % of the parameters' "
    "bytes or 16 MiB, whichever is more"
)

_SMALL = ("t5-base", "lora-r16")
_LARGE_BF16 = {"shapes": LARGE, "dtypes": ("bf16",)}
_CPU = {"device": "cpu", "dtypes": ("fp32",), "shapes": ("gpt2-30M",)}
_CPU_124M = {**_CPU, "shapes": ("gpt2-124M",)}


GOALS: dict[str, Goal] = {
    goal.name: goal
    for goal in (
        # On a GPU.
        Goal("adamw bandwidth", "AdamW, 100M parameters and more", _PERCENT, 92, 85),
        Goal("adamw large", "AdamW against torch fused at equal bytes", "x", 1.15, 1, shapes=LARGE),
        Goal("adamw many small", "the same, many small tensors", "x", 3, 1.5, shapes=MANY_SMALL),
        Goal("adamw elsewhere", "the same, other lists", "x", 1, 0.98),
        Goal("lion bandwidth", "Lion, 100M parameters and more", _PERCENT, 92, 85),
        Goal("adafactor bandwidth", "Adafactor, large bf16 lists", _PERCENT, 85, 75),
        Goal("adafactor large", "Adafactor against transformers'", "x", 8, 5, **_LARGE_BF16),
        Goal("adafactor small", "the same, T5-base and LoRA", "x", 10, 5, shapes=_SMALL),
        Goal("torch adafactor large", "Adafactor against torch's", "x", 2.5, 2, **_LARGE_BF16),
        Goal("torch adafactor small", "the same, T5-base and LoRA", "x", 5, 2, shapes=_SMALL),
        Goal("adamw launches", "launches of an AdamW step per bucket", "launches", 1, 1, True),
        Goal("lion launches", "of a Lion step per bucket", "launches", 1, 1, True),
        Goal("adafactor launches", "of an Adafactor step per bucket", "launches", 5, 5, True),
        Goal("host time", _HOST, "of torch fused", 0.25, 0.5, True),
        Goal("transient memory", _TRANSIENT, "of the limit", 1, 1, True),
        Goal("build", "building the CUDA extension for one architecture", "s", 30, None, True),
        # On a CPU. The floors of "no slower" leave room for noise, as on a GPU.
        Goal("cpu torch adamw", "torch_compat.AdamW against torch fused", "x", 1, 0.98, **_CPU),
        Goal("cpu adamw", "AdamW against torch foreach", "x", 1, 0.98, **_CPU),
        Goal("cpu adafactor", "Adafactor against transformers'", "x", 5, 3, **_CPU_124M),
        Goal("cpu adafactor small", "the same, a smaller list", "x", 5, 3, **_CPU),
    )
}

_LARGE_NUMEL = 100_000_000
_TRANSIENT_BYTES = 16 * 2**20


def evaluate(results: Results) -> list[Check]:
    checks = [check for ratio in results.ratios if (check := ratio.check())]
    return [*checks, *_on_a_gpu(results)] if results.machine.device == "cuda" else checks


def _on_a_gpu(results: Results) -> Iterator[Check]:
    # Clipping takes one more pass and one more launch, for which there are no goals.
    own = [row for row in results.rows if row.source == OURS and row.backend != "cpu"]
    own = [row for row in own if "max_grad_norm" not in SETUPS[row.optimizer].options]
    for row in own:
        large = row.copy_percent is not None and row.parameters >= _LARGE_NUMEL
        if row.op == "adafactor":
            large = large and row.dtype == "bf16" and row.shapes in LARGE
        if large:
            yield GOALS[f"{row.op} bandwidth"].check(row.copy_percent, _case(row))
    for row in own:
        if row.launches is not None:  # every setup's tensors make one bucket
            yield GOALS[f"{row.op} launches"].check(row.launches, _case(row))
    for r in results.ratios:
        compared = (r.shapes, r.baseline) == ("tiny-1000", "torch AdamW fused")
        if compared and r.host_ratio is not None:
            yield GOALS["host time"].check(r.host_ratio, f"{r.ours}, {r.shapes}, {r.dtype}")
    for m in results.memory:
        if m.source == OURS and m.transient_bytes is not None:
            stored = (m.bytes_per_parameter - m.state_bytes_per_parameter) * m.parameters
            share = m.transient_bytes / max(0.01 * stored, _TRANSIENT_BYTES)
            yield GOALS["transient memory"].check(round(share, 4), _case(m))


def _case(row: Row | Memory) -> str:
    return f"{row.optimizer}, {row.shapes}, {row.dtype}"
