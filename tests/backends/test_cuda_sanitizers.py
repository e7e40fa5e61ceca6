"""The CUDA kernels on the CPU under AddressSanitizer and UndefinedBehaviorSanitizer.

And tests of the tests: planted.cu has a fault of each kind that must not go unseen.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import host_module
import pytest
import sanitizers

SUPPORT = Path(__file__).resolve().parents[1] / "support"


if not sanitizers.available():
    pytest.skip("the compiler has no AddressSanitizer", allow_module_level=True)


@pytest.fixture(scope="module")
def planted() -> Path:
    """The program of planted.cu."""
    source = SUPPORT / "planted.cu"
    name = host_module.digest(source.read_text())
    folder = host_module.build_folder("planted", name)
    program = folder / "planted"
    with host_module.locked(folder):
        if not program.exists():
            sources = [source, host_module.CSRC / "host/fibers.cpp"]
            flags = (*host_module.SANITIZE, f"-I{host_module.CSRC}/host")
            objects = host_module.compile_objects(sources, folder, flags)
            unfinished = folder / "unfinished"
            command = [host_module.COMPILER, *host_module.SANITIZE, *objects, "-o", unfinished]
            subprocess.run(command, check=True)
            unfinished.rename(program)
    return program


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("none", ""),
        ("barrier", ""),
        ("not ahead", ""),
        ("bounds", "heap-buffer-overflow"),
        ("no barrier", "results depend on the order of threads"),
        ("ahead", "results depend on the order of threads"),
        ("half", "threads wait at a barrier or shuffle that the others don't reach"),
        ("shuffle", "lanes of a warp meet in different shuffles"),
        ("alignment", "an access of 16 bytes is not aligned"),
    ],
)
def test_planted_faults_are_caught(planted: Path, fault: str, complaint: str) -> None:
    options = {"ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [planted, fault], capture_output=True, text=True, env={**os.environ, **options}
    )
    assert (done.returncode != 0) == bool(complaint)
    assert complaint in done.stdout + done.stderr


def test_kernels_are_clean() -> None:
    module = host_module.path(*host_module.SANITIZE, "-fno-sanitize=vptr")
    sanitizers.run_worker(FUSED_OPTIM_TEST_BACKEND="cuda", FUSED_OPTIM_TEST_HOST_MODULE=str(module))
