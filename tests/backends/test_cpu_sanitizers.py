"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import platform

import cpu_module
import host_module
import pytest
import sanitizers

if not sanitizers.available():
    pytest.skip("the compiler has no AddressSanitizer", allow_module_level=True)

ISAS = ("x86-64-v2", "x86-64-v3", "x86-64-v4") if platform.machine() == "x86_64" else ("",)
# Compiling three instruction sets for the sanitizers takes minutes.
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.mark.parametrize("isa", ISAS)
def test_kernels_are_clean(isa: str) -> None:
    """Where the machine lacks an instruction set, the best that it has runs once more."""
    library = cpu_module.path(*host_module.SANITIZE, "-fno-sanitize=vptr")
    sanitizers.run_worker(str(library), FUSED_OPTIM_CPU_ISA=isa)
