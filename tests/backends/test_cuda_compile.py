"""What nvcc made of the kernels, read from the built extension: registers, and the machine code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

EXTENSION = find_spec("fused_optim._C")
if EXTENSION is None:
    pytest.skip("the CUDA extension is not built", allow_module_level=True)


def find_cuobjdump() -> str | None:
    triton = find_spec("triton")
    folders = [] if triton is None else [Path(triton.origin).parent / "backends/nvidia/bin"]
    return shutil.which("cuobjdump", path=str(folders[0])) if folders else None


CUOBJDUMP = find_cuobjdump() or shutil.which("cuobjdump")
if CUOBJDUMP is None:
    pytest.skip("needs cuobjdump, from Triton's wheel or a CUDA toolkit", allow_module_level=True)

DTYPES = {"0": "float32", "1": "float16", "2": "bfloat16"}
MODES = ("none", "nearest", "stochastic", "kahan", "split", "master")


def cuobjdump(*options: str) -> str:
    command = [CUOBJDUMP, *options, EXTENSION.origin]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def kernel_name(mangled: str) -> str | None:
    """Kernel, dtype, mode and a flag for amsgrad; None for functions that are not kernels."""
    found = re.search(r"\d([A-Z][A-Za-z]+Kernel)(?:ILl(\d)E(?:L\w*?4ModeE(\d)E)?(Lb1)?)?", mangled)
    if found is None:
        return None
    kernel, dtype, mode, amsgrad = found.groups()
    words = [kernel, DTYPES.get(dtype), MODES[int(mode)] if mode else None, amsgrad and "amsgrad"]
    return " ".join(filter(None, words))


def resources() -> dict[str, dict[str, dict[str, int]]]:
    """Architecture to kernel to what it uses."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    architecture = name = None
    for line in cuobjdump("-res-usage").splitlines():
        if line.startswith("arch = "):
            architecture = line.split()[-1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = kernel_name(match[1])
        elif "REG:" in line and name:
            usage = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            found.setdefault(architecture, {})[name] = usage
    return found


@pytest.fixture(scope="module")
def usage() -> dict[str, dict[str, dict[str, int]]]:
    return resources()


def built_architectures() -> list[str]:
    # In a process of its own: in this one, other tests may have loaded the host's module instead.
    program = "from fused_optim import _C; print(_C.ARCHITECTURES)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return [name for name in run.stdout.split() if name.startswith("sm_")]


@pytest.fixture(scope="module")
def code() -> dict[str, list[str]]:
    """Kernel to its instructions, for one architecture; sm_90 if that is built."""
    names = built_architectures()
    architecture = "sm_90" if "sm_90" in names else names[0]
    found: dict[str, list[str]] = {}
    name = None
    for line in cuobjdump("-sass", "-arch", architecture).splitlines():
        if match := re.match(r"\s*Function : (\S+)", line):
            name = kernel_name(match[1])
        elif name and (match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s*(.*?)\s*;", line)):
            found.setdefault(name, []).append(match[1])
    return found


def variants() -> Iterator[str]:
    for dtype, modes in (
        ("float32", ("none",)),
        ("bfloat16", ("nearest", "stochastic", "kahan", "split", "master")),
        ("float16", ("nearest", "stochastic", "kahan", "master")),
    ):
        yield from (f"{dtype} {mode}" for mode in modes)


def test_every_kernel_is_there_for_every_architecture(usage) -> None:
    expected = {f"AdamWKernel {v}{flag}" for v in variants() for flag in ("", " amsgrad")}
    expected |= {f"{k}Kernel {v}" for v in variants() for k in ("Lion", "Statistics", "Apply")}
    expected |= {f"{k}Kernel" for k in ("Fold", "Finalise", "UpdateSums")}
    expected |= {"SquarePartialsKernel", "SquareSumsKernel"}
    assert built_architectures()
    for architecture in built_architectures():
        assert set(usage[architecture]) == expected, architecture


SPILLED = 32
"""Bytes of registers that AdamW's kernels may spill: they also hold blocks of 8-bit moments."""


def test_no_spills_and_no_local_memory(usage) -> None:
    for architecture in built_architectures():
        for name, used in usage[architecture].items():
            spilled = SPILLED if name.startswith("AdamWKernel") else 0
            assert used["STACK"] <= spilled and used["LOCAL"] == 0, (architecture, name, used)
            assert used["SHARED"] <= 48 * 1024, (architecture, name, used)


def test_two_blocks_fit_on_a_processor(usage) -> None:
    """256 threads of 128 registers are half of the register file.

    But for Adafactor's small tensors, whose block has all stages in one kernel.
    """
    for architecture in built_architectures():
        for name, used in usage[architecture].items():
            if name != "FinaliseKernel":
                assert used["REG"] <= 128, (architecture, name, used)


@pytest.mark.parametrize("variant", list(variants()))
def test_wide_global_accesses_on_the_hot_path(code, variant: str) -> None:
    for kernel in ("AdamW", "Lion", "Statistics", "Apply"):
        name = f"{kernel}Kernel {variant}"
        text = "\n".join(code[name])
        assert "LDG.E.128" in text, name
        assert "STG.E.128" in text or name.startswith("Statistics"), name
        # A generic access would mean that an address was not known to be of global memory.
        assert not re.search(r"\b(LD|ST)\.E\b", text), name
        assert kernel == "AdamW" or not re.search(r"\b(LDL|STL)\b", text), name
        assert not re.search(r"\b(RED|ATOM|ATOMG)\S*\.F", text), name


def test_small_tensors_take_wide_accesses_too(code) -> None:
    """All variants of a parameter are in this one kernel. Of scalars some accesses are generic."""
    text = "\n".join(code["FinaliseKernel"])
    assert "LDG.E.128" in text and "STG.E.128" in text
    assert not re.search(r"\b(LD|ST)\.E\.\w*(64|128)\b", text)
    assert not re.search(r"\b(RED|ATOM|ATOMG)\S*\.F", text)
    assert not re.search(r"\b(LDL|STL)\b", text)


@pytest.mark.parametrize("kernel", ["Statistics", "Apply"])
def test_adafactor_asks_for_memory_ahead(code, kernel: str) -> None:
    """Gradient, parameter and remainder of a later step, without registers to hold them."""
    instructions = code[f"{kernel}Kernel bfloat16 split"]
    assert sum("CCTL.E.PF2" in text for text in instructions) >= 3


def test_all_loads_are_in_flight_before_the_first_is_used(code) -> None:
    """Between the first and the last 128-bit load of the main loop nothing is computed on data."""
    instructions = code["AdamWKernel bfloat16 split"]
    wide = [i for i, text in enumerate(instructions) if "LDG.E.128" in text]
    # Parameter, gradient, remainder; two moments of up to 32 bytes; the gradient's second half.
    # Blocks of 8-bit moments have wide loads of their own.
    runs = ("\n".join(instructions[wide[i] : wide[i + 7]]) for i in range(len(wide) - 7))
    assert any(not re.search(r"\b(FMUL|FADD|MUFU|BRA|CALL)", between) for between in runs)


def test_operations_are_not_contracted(code) -> None:
    """Eight elements at a time and one: W1 to W6 have 7 additions each, all of them visible.

    Contracted, 4 of them would be part of a fused multiply-add.
    """
    for name in ("AdamWKernel bfloat16 nearest", "AdamWKernel float16 master amsgrad"):
        additions = sum(bool(re.search(r"\bFADD(?!\.FTZ)", text)) for text in code[name])
        assert additions >= (8 + 1) * 7, name
