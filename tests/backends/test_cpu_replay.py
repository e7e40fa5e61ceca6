"""The CPU kernels where Python can't follow: under ThreadSanitizer, and on AArch64 by emulation.

Calls of this machine's kernels are written down with the memory before and after them, and a
program repeats them: AdamW and Lion in every mode, moments in 8 bits, Adafactor's stages, sums for
clipping.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import cpu_replay
import host_module
import numpy as np
import pytest
import sanitizers

pytest.importorskip("fused_optim._cpu", reason="there are no CPU kernels")

import cpu_calls  # noqa: E402
import cpu_recording  # noqa: E402

from fused_optim.backends import cpu  # noqa: E402

# A build takes a minute or two.
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calls") / "calls"
    cpu_calls.write(path, cpu)
    return path


# --- races ----------------------------------------------------------------------------------------

# memcpy has to stay a call, of which the sanitizer knows: it does not see one that is a few moves.
TSAN = ("-O1", "-fsanitize=thread", "-fno-builtin-memcpy")
x86 = pytest.mark.skipif(not cpu.instruction_set().startswith("x86"), reason="of x86-64")
watched = pytest.mark.skipif(
    not Path(sanitizers.library("libtsan.so")).is_absolute(),
    reason=f"{host_module.COMPILER} has no ThreadSanitizer",
)


def watch(calls: Path, fault: tuple[str, str, str] | None = None) -> subprocess.CompletedProcess:
    """Run all calls on three threads under ThreadSanitizer."""
    program = cpu_replay.build(host_module.COMPILER, *TSAN, fault=fault)
    # Its shadow memory has a place that the system's random addresses may take.
    under = ("setarch", "-R") if shutil.which("setarch") else ()
    return program.replay(calls, 3, under, TSAN_OPTIONS="halt_on_error=1 exitcode=66")


@x86
@watched
def test_threads_do_not_race(calls: Path) -> None:
    done = watch(calls)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert done.stdout.endswith(" 0 differ\n")


RACES = {
    "StepChunk": ("cpu/elementwise.h", "? index + kChunkSize :", "? index + kChunkSize + 8 :"),
    "SumTile": ("cpu/adafactor.h", "tile_sums + tile] = g_sum", "tile_sums] = g_sum"),
}
"""By the function that they are in: chunks that overlap, and a sum that all tiles write to."""


@x86
@watched
@pytest.mark.parametrize("where", RACES)
def test_a_race_is_found(calls: Path, where: str) -> None:
    done = watch(calls, RACES[where])
    assert done.returncode == 66
    assert "WARNING: ThreadSanitizer: data race" in done.stderr and where in done.stderr


# --- AArch64 --------------------------------------------------------------------------------------

GXX = "aarch64-linux-gnu-g++"
ZIG = f"{sys.executable} -m ziglang c++ -target aarch64-linux-gnu"
HAVE = {
    GXX: shutil.which(GXX) is not None,
    ZIG: importlib.util.find_spec("ziglang") is not None,
}
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
NEON = {
    "umull v.2d, v.2s": ((0xFFE0FC00, 0x2EA0C000), (0xFFC0F400, 0x2F80A000)),  # by a lane, too
    "fsqrt v.4s": ((0xFFFFFC00, 0x6EA1F800),),
}
"""Instructions on vectors, as masks and what they leave: products of Philox, and square roots."""


def libraries() -> Path:
    """Return the folder of the architecture's own libraries, which Debian's compiler knows."""
    if not HAVE[GXX]:
        pytest.skip(f"there is no {GXX}, whose libraries the program needs")
    named = [GXX, "-print-file-name=libc.so.6"]
    found = subprocess.run(named, capture_output=True, text=True, check=True).stdout.strip()
    return Path(found).resolve().parents[1]


@pytest.mark.parametrize("compiler", [GXX, ZIG], ids=["g++", "clang"])
def test_the_bits_of_aarch64_are_those_of_this_machine(compiler: str, calls: Path) -> None:
    if not HAVE[compiler]:
        pytest.skip(f"there is no {compiler}")
    if EMULATOR is None:
        pytest.skip("there is no qemu-aarch64")
    under = (EMULATOR, "-L", str(libraries()))
    program = cpu_replay.build(compiler, sets={"base": ("aarch64", "")})
    code = np.fromfile(program.path, "<u4", program.path.stat().st_size // 4)
    for name, forms in NEON.items():
        found = sum(int((code & mask == left).sum()) for mask, left in forms)
        assert found >= 20, f"the kernels have {found} of {name}"
    for threads in (1, 3):
        done = program.replay(calls, threads, under)
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        assert done.stdout.startswith("aarch64: ") and done.stdout.endswith(" 0 differ\n")


def test_a_difference_is_seen(calls: Path, tmp_path: Path) -> None:
    """The last byte that a call has written is another in the file."""
    program = cpu_replay.build(host_module.COMPILER, "-O1")
    assert program.replay(calls, 2).stdout.endswith(" 0 differ\n")
    with open(calls, "rb") as file:
        call = np.frombuffer(file.read(cpu_recording.CALL.itemsize), cpu_recording.CALL)[0]
        size = int(call["bytes"])
        before, after = np.frombuffer(file.read(2 * size), np.uint8).reshape(2, size).copy()
    after[np.flatnonzero(before != after)[-1]] ^= 1
    changed = tmp_path / "changed"
    changed.write_bytes(call.tobytes() + before.tobytes() + after.tobytes())
    done = program.replay(changed, 2)
    assert done.returncode == 1 and done.stdout.endswith("1 calls, 1 differ\n"), done.stdout
