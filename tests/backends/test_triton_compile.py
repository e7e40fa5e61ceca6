"""Triton kernels compiled for GPUs that need not be there: what their assembly says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from reference_fp32 import MODES

pytest.importorskip("triton.backends.nvidia")
if sys.platform != "linux":
    pytest.skip("Triton's compiler is for Linux", allow_module_level=True)

ADAMW = (
    "adamw:float32:none",
    "adamw:bfloat16:stochastic:draws",
    "adamw:bfloat16:split:amsgrad",
    "adamw:bfloat16:split:draws:amsgrad:packed",
)
LION = ("lion:float32:none", "lion:bfloat16:stochastic:draws", "lion:bfloat16:split")
ADAFACTOR = (
    "statistics:bfloat16:split",
    "totals",
    "finalise",
    "update_sums",
    "apply:bfloat16:split",
)
GRADIENTS = ("square_sums",)
EVERY = [
    ":".join((name, dtype, mode, *flags))
    for name in ("adamw", "lion")
    for dtype, modes in MODES.items()
    for mode in modes
    for flags in ((), ("amsgrad",), ("draws",), ("draws", "amsgrad"))
    if ("draws" in flags or mode != "stochastic") and not (name == "lion" and "amsgrad" in flags)
]

RESIDENT = {
    **dict.fromkeys(("adamw", "lion", "square_sums", "finalise", "totals"), 4),
    # Few, but each thread of them has up to four 128-bit loads on their way at a time.
    **{"statistics": 1, "update_sums": 1, "apply": 3},
}
"""Programs that the registers of a multiprocessor, 65,536, have to suffice for."""


def reports(target: str, *variants: str) -> dict[str, dict]:
    script = Path(__file__).parents[1] / "support/compile_kernels.py"
    command = [sys.executable, str(script), target, *variants]
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    found = [json.loads(line) for line in run.stdout.splitlines()]
    return {report["variant"]: report for report in found}


def count(report: dict, prefix: str) -> int:
    opcodes = report["opcodes"].items()
    return sum(number for opcode, number in opcodes if opcode.startswith(prefix))


def assert_resources(report: dict) -> None:
    where = report["variant"]
    assert report["STACK"] == report["LOCAL"] == 0, where
    assert report["specialized"] == [], where  # no value or alignment compiles a kernel anew
    if "opcodes" in report:
        assert count(report, "LDL") == count(report, "STL") == 0, where
        registers = -(-report["REG"] // 8) * 8 * 32 * report["warps"]  # handed out by eights
        assert 65_536 // registers >= RESIDENT[where.split(":")[0]], (where, report["REG"])
        assert count(report, "ATOM") == count(report, "RED.") == 0, where
        assert report["fma"] == report["ftz"] == 0, where  # none in PTX: only inside div and sqrt


def assert_vectors(report: dict) -> None:
    """Hold the vector path to 128-bit accesses, of the widths that the storage allows."""
    name, *options = report["variant"].split(":")
    loads, stores = count(report, "LDG.E.128"), count(report, "STG.E.128")
    if name in ("adamw", "lion"):
        moments = 1 if name == "lion" else 3 if "amsgrad" in options else 2
        # Four elements a thread fill a vector where they are float32; eight, whatever they are.
        wide = moments + 1 if options[0] == "float32" else moments
        if "draws" in options and not (options[0] == "float32" and "amsgrad" in options):
            wide = 2 * (moments + 1)
        assert loads >= wide and stores >= moments, report["variant"]
    elif name in ("statistics", "update_sums", "apply", "square_sums"):
        assert loads > 0, report["variant"]
    if name == "apply":
        assert stores > 0


def test_hopper() -> None:
    for report in reports("sm_90", *ADAMW, *LION, *ADAFACTOR, *GRADIENTS).values():
        assert_resources(report)
        assert_vectors(report)


def test_float32_goes_through_no_shared_memory() -> None:
    report = reports("sm_90", ADAMW[0])[ADAMW[0]]
    assert report["shared"] == 0
    assert count(report, "LDS") == count(report, "STS") == count(report, "BAR") == 0


@pytest.mark.parametrize("target", ["sm_80", "sm_100"])
def test_other_nvidia_gpus(target: str) -> None:
    for report in reports(target, *ADAMW[:2], "finalise").values():
        assert_resources(report)
        assert_vectors(report)


def test_amd() -> None:
    for report in reports("gfx942", *ADAMW[1:], "finalise").values():
        assert_resources(report)
        assert report["variant"] == "finalise" or report["wide"] > 0


@pytest.mark.long
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_variant(target: str) -> None:
    for report in reports(target, *EVERY, *ADAFACTOR, *GRADIENTS).values():
        assert_resources(report)
        if "opcodes" in report:
            assert_vectors(report)
