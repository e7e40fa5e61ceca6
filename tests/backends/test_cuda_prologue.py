"""What every tile of Adafactor costs before and after its elements, read from nvcc's PTX."""

from __future__ import annotations

import re

import pytest
from ptx import nvcc

TILE_KERNELS = {"statistics": 10, "update_sums": 1, "apply": 10}  # by file; how many of them
BARRIER = r"\b(?:bar|barrier)\.sync\b"


def kernels_of(name: str) -> list[str]:
    """Return the text of each kernel of a file that walks tiles."""
    text = nvcc.modules(nvcc.ARCHITECTURES[0])[f"adafactor/{name}"]
    found = re.split(r"^(?:\.visible )?\.entry ", text, flags=re.M)[1:]
    return [each for each in found if "FoldKernel" not in each.partition("(")[0]]


def instructions(text: str) -> int:
    return len(re.findall(r"^\s+(?:@!?%p\d+\s+)?[a-z]\w*\.[\w.:]+", text, re.M))


@pytest.mark.parametrize("name", TILE_KERNELS)
def test_no_thread_works_out_a_tensors_shape(name: str) -> None:
    """Between the barriers that begin a tile, warps copy words, or compute a few, side by side."""
    kernels = kernels_of(name)
    assert len(kernels) == TILE_KERNELS[name]
    for kernel in kernels:
        begins = re.split(BARRIER, kernel)[1]
        assert 40 < instructions(begins) < 100
        assert "div.u64" not in begins and "div.s64" not in begins


def test_an_arrival_is_one_instruction() -> None:
    """Its order is that of release and acquire, without fences of the whole device."""
    (kernel,) = kernels_of("update_sums")
    assert len(re.findall(r"\batom\.add\.acq_rel\.gpu\.global\.u32\b", kernel)) == 1
    assert len(re.findall(r"\b(?:membar|fence|atom|red)\.", kernel)) == 1
