"""What docs/internals/traffic_model.md says of executed instructions.

    python tests/support/instructions_page.py

writes its table anew: nvcc's PTX of csrc/ for an H100, and Triton's, executed by tests/support/ptx.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import torch
import written_pages
from ptx.machine import KINDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/internals/traffic_model.md"
NUMEL = 1 << 16
MATRIX = (512, 1024)
ELEMENTWISE = {
    "AdamW, float32": ("adamw", torch.float32, "none", torch.float32),
    "AdamW, bf16 `split`, float32 moments": ("adamw", torch.bfloat16, "split", torch.float32),
    "AdamW, bf16 `split`, 8-bit moments": ("adamw", torch.bfloat16, "split", torch.uint8),
    "AdamW, bf16 `stochastic`, all bf16": ("adamw", torch.bfloat16, "stochastic", torch.bfloat16),
    "Lion, bf16 `split`, float32 moment": ("lion", torch.bfloat16, "split", torch.float32),
}
STAGES = ("statistics", "finalise_", "update_sums", "apply_")
Counts = dict[str, dict[str, float]]


def _per_element(executed: list, numel: int) -> dict[str, float]:
    """Return lanes' slots of instructions for each element: a warp's instruction takes 32."""
    counts = [counts.instructions for _, counts in executed]
    return {kind: 32 * sum(each[kind] for each in counts) / numel for kind in KINDS}


def counted(ops: object, executed: list) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each row's instructions by kind, of a backend that notes what it executes."""
    from entries import bucket_of, entry_of, extra_of, key_of

    from fused_optim.backends.interface import Bucket, Launch, TensorEntry
    from fused_optim.ops import AdafactorRow

    launch = Launch(sums_wanted=False)
    for name, (op, dtype, mode, state) in ELEMENTWISE.items():
        key = key_of(dtype, mode, op=op)
        entry = entry_of(key, (NUMEL,), grad=dtype, state=state)
        executed.clear()
        getattr(ops, f"{op}_")(bucket_of(key, [entry]), launch)
        yield name, _per_element(executed, NUMEL)
    for flags, suffix in ((0, ""), (1, ", `scale_parameter`")):
        key = key_of(torch.bfloat16, "stochastic", op="adafactor")
        param, grad = torch.randn(MATRIX).bfloat16(), torch.randn(MATRIX).bfloat16()
        entry = TensorEntry(param, grad, exp_avg_sq=torch.rand(MATRIX[0]))
        entry.max_exp_avg_sq = torch.rand(MATRIX[1])
        entry.extra = extra_of(key, param)
        row = AdafactorRow(b2=0.9, omb2=0.1, flags=flags, rho=1e-3)
        bucket = Bucket(key, entries=[entry], rows=[row])
        for stage in STAGES:
            executed.clear()
            getattr(ops, f"adafactor_{stage}")(bucket, launch)
            if not flags or stage == "statistics":
                name = f"Adafactor's {stage.rstrip('_').replace('_', ' ')}, bf16{suffix}"
                yield name, _per_element(executed, param.numel())


def of_nvcc() -> Counts:
    import host_module
    from prepared import OnBuckets

    module = host_module.backend_over(Path(__file__).parent / "ptx/cuda_module.py")
    module._C.schedule.races = False
    try:
        return dict(counted(OnBuckets(module), module._C.executed))
    finally:
        module._C.schedule.races = True


def of_triton() -> Counts:
    """Count in a process of its own, in which Triton compiles and does not interpret."""
    path = os.pathsep.join(filter(None, sys.path))
    env = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": path}
    command = [sys.executable, __file__, "--triton"]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def _triton_counts() -> Counts:
    from prepared import OnBuckets
    from ptx import triton_ptx

    from fused_optim import triton_kernels

    triton_ptx.schedule.races = False
    with triton_ptx.installed():
        return dict(counted(OnBuckets(triton_kernels), triton_ptx.executed))


def table() -> str:
    """Return the table of both compilers."""
    lines = [f"Compiled by {compilers()}.", ""]
    lines.append("| kernel | compiler | all | " + " | ".join(KINDS) + " |")
    lines.append("| --- | --- |" + " ---: |" * (1 + len(KINDS)))
    found = {"nvcc": of_nvcc(), "Triton": of_triton()}
    for name in found["nvcc"]:
        for compiler, counts in found.items():
            each = counts[name]
            cells = [f"{value:.1f}" for value in (sum(each.values()), *each.values())]
            lines.append(f"| {name} | {compiler} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def compilers() -> str:
    """Return the versions that decide what is executed."""
    from importlib.metadata import version

    from ptx import nvcc

    command = [nvcc.find_nvcc(), "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return f"nvcc {re.search(r'V([0-9.]+)', printed)[1]} and Triton {version('triton')}"


def written() -> dict[tuple[str, str], float]:
    """Return the page's counts of all instructions by kernel and compiler."""
    text = PAGE.read_text().split("<!-- instructions:begin -->")[1]
    lines = text.split("<!-- instructions:end -->")[0].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if re.match(r"\| (Ada|Lion)", line)]
    return {(row[0], row[1]): float(row[2]) for row in rows}


def written_compilers() -> str:
    return re.search(r"Compiled by (.*)\.", PAGE.read_text())[1]


TABLES = {"instructions": table}

if __name__ == "__main__":
    if "--triton" in sys.argv:
        print(json.dumps(_triton_counts()))
    else:
        written_pages.rewrite(PAGE, TABLES, "Counts executed instructions and writes their table.")
