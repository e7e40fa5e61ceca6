"""A result file of invented figures, to draw pictures and pages of. Nothing here was measured."""

from __future__ import annotations

import bench_package  # noqa: F401
import pytest

pytest.importorskip("pandas")

from bench import goals
from bench.pairs import PAIRS
from bench.results import Copy, Memory, Missing, Ratio, Results, Row
from bench.setups import SETUPS
from bench.shapes import FIXED_SIZE, FIXED_TENSORS, SHAPES, numel, swept
from bench.system import Machine

SWEPT = ("AdamW", "torch_compat.AdamW", "torch AdamW fused", "torch AdamW foreach")
SWEPT += ("Adafactor", "transformers Adafactor", "torch Adafactor")
COPY = 1000.0


def machine() -> Machine:
    return Machine(
        date="2000-01-01", commit="0000000", fused_optim="0.0.0", torch="0.0", triton="0.0",
        cuda="0.0", driver="0.0", python="3.0", cpu="Invented CPU <i>", cores=1, threads=1,
        device="cuda", gpu="Invented GPU & more", multiprocessors=1, memory_bytes=2**30,
        l2_bytes=2**20, peers={"transformers": "0.0"},
    )  # fmt: skip


def row(name: str, shapes: str, dtype: str) -> Row:
    setup, parameters, tensors = SETUPS[name], numel(SHAPES[shapes]), len(SHAPES[shapes])
    ours = setup.source == "fused_optim"
    size = 28.0 if setup.op == "adamw" else 12.0
    launches = 1 if ours else tensors if setup.op == "adafactor" else tensors / 40
    busy = 0.93 if ours else 0.8
    ms = 0.004 * launches + size * parameters / (busy * COPY * 1e6) + 0.003
    rate = size * parameters / (ms * 1e6)
    return Row(
        setup.op, name, setup.source, "cuda" if ours else None, shapes, dtype, tensors, parameters,
        11, ms, [0.98 * ms, 1.03 * ms], 20.0 + tensors / 10, size, rate, 100 * rate / COPY,
        1 if ours and setup.op == "adamw" else None,
    )  # fmt: skip


def ratio(number: int, pair, shapes: str, dtype: str) -> Ratio:
    value = round(0.93 * 1.11**number if number < 30 else 1.0 + number / 20, 3)
    goal = pair.goal("cuda", shapes, dtype)
    return Ratio(
        pair.ours, pair.baseline, shapes, dtype, pair.kind, numel(SHAPES[shapes]), 10.0,
        10.0 / value, 11, value, [0.95 * value, 1.06 * value], 0.3,
        goal.goal if goal else None, goal.floor if goal else None,
    )  # fmt: skip


def results() -> Results:
    made = Results(machine(), Copy(COPY, 2**30, [990.0, 1010.0]))
    lists = [swept(FIXED_TENSORS, 16, 10**k // 16) for k in range(4, 10)]
    lists += [swept(FIXED_SIZE, 10**k, 10 ** (7 - k)) for k in range(5)]
    made.rows = [row(name, shapes, "fp32") for name in SWEPT for shapes in lists]
    made.rows += [row(name, "llama-8b-2l", "bf16") for name in ("AdamW", "Adafactor stochastic")]
    number = 0
    for pair in PAIRS:
        for shapes in ("llama-8b-2l", "lora-r16", "tiny-1000"):
            made.ratios.append(ratio(number % 40, pair, shapes, pair.dtypes[0]))
            number += 1
    for number, (name, setup) in enumerate(SETUPS.items()):
        for dtype in setup.dtypes:
            if dtype == "fp16":
                continue
            stored, state = (2.0 if dtype == "bf16" else 4.0), float(number % 5) * 2 + 0.04
            made.memory.append(
                Memory(
                    name, setup.source, "gpt2-30M", dtype, 30_000_000, state, state + stored, 2**20
                )
            )
    made.checks = goals.evaluate(made)
    made.missing = [Missing("apex <FusedAdam>", "not installed & more")]
    return made
