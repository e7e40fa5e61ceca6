"""What nvcc's PTX of the kernels says, for an H100 and for the fallback that is shipped."""

from __future__ import annotations

import re

import pytest
from ptx import nvcc

each_architecture = pytest.mark.parametrize("architecture", nvcc.ARCHITECTURES)


@each_architecture
def test_every_variant_has_a_kernel(architecture: str) -> None:
    entries = {
        name: len(re.findall(r"^(?:\.visible )?\.entry ", text, re.M))
        for name, text in nvcc.modules(architecture).items()
    }
    variants = {"elementwise/adamw": 20, "elementwise/lion": 10, "adafactor/apply": 10}
    assert {name: entries[name] for name in variants} == variants
    assert min(entries.values()) >= 1


@each_architecture
def test_operations_are_rounded_once_and_keep_subnormals(architecture: str) -> None:
    """Division and square root are the correctly rounded ones, and nothing is contracted."""
    for name, text in nvcc.modules(architecture).items():
        assert not re.search(r"\bfma\.|\.ftz|\.approx|\.full\b", text), name
        assert not re.search(r"\b(?:red|atom)\.\S*\.f\d+", text), name


def test_both_architectures_run_the_same_instructions() -> None:
    """So what is shown of one of them holds for the other."""
    hopper, fallback = (nvcc.modules(architecture) for architecture in nvcc.ARCHITECTURES)
    for name, text in hopper.items():
        assert opcodes(text) == opcodes(fallback[name]), name


def opcodes(text: str) -> list[str]:
    """Return the opcodes of a module in order, without predicates and operands."""
    return re.findall(r"^\s+(?:@!?%p\d+\s+)?([a-z]\w*\.[\w.:]+)", text, re.M)
