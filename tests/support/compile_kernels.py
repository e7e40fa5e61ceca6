"""Compiles Triton kernels for GPUs that need not be there; run by test_triton_compile.

    python compile_kernels.py <target> <variant>...

The target is ``sm_90`` or the like, or ``gfx942``; a variant is ``adamw:bfloat16:split:amsgrad`` or
the name of another kernel with its dtype and mode. Prints one line of JSON for each.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
import triton.language as tl
from fused_optim.triton_kernels import adafactor, adamw, elementwise, gradients, lion
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
FLOAT32_POINTERS = ("grad_scale", "found_inf", "clip", "scratch", "sums", "square_sums")
POINTERS = {"records": "*i64", "rows": "*i32", "chunks": "*i32", "tiles": "*i32"}
POINTERS |= dict.fromkeys(FLOAT32_POINTERS, "*fp32")


def source_of(variant: str, warp_size: int = 32):
    """Return a variant's kernel, constants and number of warps, as the ops launch it."""
    name, *options = variant.split(":")
    constants = {}
    if options:
        constants = {"DTYPE": getattr(tl, options[0]), "MODE": options[1]}
    warps = adafactor.WARPS
    if name in ("adamw", "lion"):
        moments = 1 if name == "lion" else 2 + ("amsgrad" in options)
        draws = "draws" in options
        sizes = elementwise.sizes(getattr(torch, options[0]), moments, draws, warp_size)
        if name == "lion":
            return lion.lion_kernel, constants | sizes, elementwise.NUM_WARPS
        constants |= {"MOMENTS": moments, "PACKED": "packed" in options}
        return adamw.adamw_kernel, constants | sizes, elementwise.NUM_WARPS
    if name == "square_sums":
        sizes = {"CHUNK": gradients.CHUNK_SIZE, "TAIL": gradients.TAIL_SIZE}
        sizes |= {"BLOCK": gradients.BLOCK_SIZE, "CLAMPS": True}
        return gradients.square_sums_kernel, sizes, 4
    return {
        "statistics": (adafactor.statistics_kernel, constants | adafactor.BLOCK, warps),
        "totals": (adafactor.totals_kernel, {}, 4),
        "finalise": (adafactor.finalise_kernel, adafactor.FOLD, adafactor.FOLD_WARPS),
        "update_sums": (adafactor.update_sums_kernel, adafactor.BLOCK, warps),
        "apply": (
            adafactor.apply_kernel,
            constants | adafactor.APPLY_BLOCK,
            adafactor.APPLY_WARPS,
        ),
    }[name]


def compiled(variant: str, target: GPUTarget):
    """Compile one variant ahead of time."""
    kernel, constants, warps = source_of(variant, target.warp_size)
    signature = {
        name: POINTERS.get(name, "i32") if name.islower() else "constexpr"
        for name in kernel.arg_names
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    return triton.compile(source, target=target, options=options)


def nvidia_report(kernel) -> dict:
    """Return what ptxas and the disassembler say: registers, stack, and how often each opcode."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = tool("-res-usage", file.name)
        sass = tool("-sass", file.name)
    opcodes: dict[str, int] = {}
    for opcode in re.findall(
        r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][\w.]*)", sass, re.M
    ):
        opcodes[opcode] = opcodes.get(opcode, 0) + 1
    numbers = {key: int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL")}
    fused = len(re.findall(r"\bfma\.rn\.f32\b", kernel.asm["ptx"]))
    return {**numbers, "opcodes": opcodes, "fma": fused, "ftz": kernel.asm["ptx"].count(".ftz")}


def amd_report(kernel) -> dict:
    """Return what the assembler's directives say."""
    text = kernel.asm["amdgcn"]
    scratch = int(re.search(r"\.private_segment_fixed_size:\s*(\d+)", text)[1])
    return {
        "REG": int(re.search(r"\.vgpr_count:\s*(\d+)", text)[1]),
        "STACK": scratch,
        "LOCAL": 0,
        "wide": len(re.findall(r"(?:global|flat)_load_dwordx4", text)),
    }


def tool(*arguments: str) -> str:
    """Run the cuobjdump of Triton's wheel."""
    command = [str(TOOLS / "cuobjdump"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(name: str, *variants: str) -> None:
    """Compile and report, one line for each variant."""
    nvidia = name.startswith("sm_")
    target = GPUTarget("cuda", int(name[3:]), 32) if nvidia else GPUTarget("hip", name, 64)
    for variant in variants:
        kernel = compiled(variant, target)
        report = nvidia_report(kernel) if nvidia else amd_report(kernel)
        report |= {"variant": variant, "shared": kernel.metadata.shared}
        report["warps"] = kernel.metadata.num_warps
        parameters = source_of(variant)[0].params
        report["specialized"] = [
            p.name for p in parameters if not (p.is_constexpr or p.do_not_specialize)
        ]
        print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
