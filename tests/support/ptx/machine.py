"""Launches of PTX on this CPU: builds executor.cpp once per change of it, and calls it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import host_module
import numpy as np

if TYPE_CHECKING:
    from ptx.program import Program

FOLDER = Path(__file__).parent
FLAGS = ("-std=c++17", "-O2", "-ftree-vectorize", "-march=native", "-ffp-contract=off", "-fPIC")
FLAGS += ("-Wall", "-Wextra", "-Werror", "-shared", f"-I{host_module.CSRC}")
KINDS = ("integer", "float", "special", "memory", "exchange", "move", "control")


class PtxFault(RuntimeError):
    """A launch did what a GPU forbids, or leaves to chance."""


@dataclass(frozen=True)
class Region:
    """A part of memory that a launch may reach.

    Attributes:
        address: of its first byte.
        bytes: its size.
        writable: False for tables and gradients.
        granule: bytes that are read and written together, at the least.
        initialised: uint8, a flag for each granule that has been written; None where all have.
    """

    address: int
    bytes: int
    writable: bool = False
    granule: int = 4
    initialised: np.ndarray | None = None


@dataclass
class Schedule:
    """How a launch's blocks and warps take turns, and what is looked for.

    Attributes:
        resident: blocks that run at a time.
        slice: the most instructions of a warp's turn; 0 lets it run until it waits.
        seed: of the order of blocks and warps; 0 takes them as they are numbered.
        races: whether races are looked for.
        limit: instructions of all warps together; more are taken for an endless loop.
    """

    resident: int = 4
    slice: int = 0
    seed: int = 0
    races: bool = True
    limit: int = 2_000_000_000


@dataclass
class Counts:
    """Instructions that warps executed.

    Attributes:
        instructions: how many, by kind.
        lines: those of the PTX that they stand in.
    """

    instructions: dict[str, int]
    lines: set[int] = field(repr=False)

    @property
    def total(self) -> int:
        return sum(self.instructions.values())


class _Region(ctypes.Structure):
    _fields_ = (
        *(("begin", ctypes.c_uint64), ("end", ctypes.c_uint64)),
        *(("writable", ctypes.c_uint32), ("granule", ctypes.c_uint32)),
        ("initialised", ctypes.c_void_p),
    )


class _Request(ctypes.Structure):
    _fields_ = (
        *(("program", ctypes.c_void_p), ("instructions", ctypes.c_int64)),
        *(("constants", ctypes.c_char_p), ("register_bytes", ctypes.c_int64)),
        ("specials", ctypes.c_int32 * 4),
        *(("parameters", ctypes.c_char_p), ("parameter_bytes", ctypes.c_int64)),
        *(("regions", ctypes.c_void_p), ("region_count", ctypes.c_int64)),
        *(("blocks", ctypes.c_int64), ("threads", ctypes.c_int64)),
        *(("shared_bytes", ctypes.c_int64), ("resident", ctypes.c_int64)),
        *(("slice", ctypes.c_int64), ("seed", ctypes.c_uint64)),
        *(("races", ctypes.c_int64), ("limit", ctypes.c_int64)),
        ("executed", ctypes.c_void_p),
    )


class _Result(ctypes.Structure):
    _fields_ = (
        ("counts", ctypes.c_int64 * len(KINDS)),
        ("fault", ctypes.c_char * 512),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    text = hashlib.sha256(repr((host_module.COMPILER, FLAGS[:-1], _processor())).encode())
    for source in (*sorted(FOLDER.glob("*.[hc]*")), host_module.CSRC / "common/host_math.h"):
        text.update(source.read_bytes())
    folder = host_module.build_folder("ptx-executor", text.hexdigest()[:16])
    library = folder / "executor.so"
    with host_module.locked(folder):
        if not library.exists():
            unfinished = folder / "unfinished.so"
            source = FOLDER / "executor.cpp"
            command = [host_module.COMPILER, *FLAGS, str(source), "-o", str(unfinished)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            unfinished.rename(library)
    loaded = ctypes.CDLL(str(library))
    loaded.ptx_run.argtypes = [ctypes.POINTER(_Request), ctypes.POINTER(_Result)]
    return loaded


def _processor() -> str:
    """Return what decides what ``-march=native`` makes."""
    flags = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "flags" in line]
    return flags[0] if flags else ""


@functools.cache
def operations() -> dict[str, int]:
    """Return the numbers of the operations that the executor has, by name."""
    text = ctypes.create_string_buffer(1 << 16)
    _library().ptx_operations(text, ctypes.c_int64(len(text)))
    return {name: number for number, name in enumerate(text.value.decode().split())}


def merged(regions: Iterable[Region]) -> list[Region]:
    """Return regions in order, those that overlap as one: views of a storage may interleave."""
    found: list[Region] = []
    for region in sorted((r for r in regions if r.bytes), key=lambda r: r.address):
        last = found[-1] if found else None
        if last is None or region.address >= last.address + last.bytes:
            found.append(region)
            continue
        assert last.initialised is None and region.initialised is None, "scratch is no tensor's"
        end = max(last.address + last.bytes, region.address + region.bytes)
        found[-1] = Region(
            last.address,
            end - last.address,
            last.writable or region.writable,
            min(last.granule, region.granule),
        )
    return found


def run(
    program: Program,
    *,
    blocks: int,
    threads: int,
    parameters: bytes,
    regions: Iterable[Region],
    shared_bytes: int | None = None,
    schedule: Schedule | None = None,
) -> Counts:
    """Run a launch.

    Args:
        shared_bytes: of a block; None takes what the program declares.

    Raises:
        PtxFault: an access out of bounds, not aligned, of what nothing has written, or in a race;
            a barrier or an exchange that not all threads reach; an endless loop.
    """
    schedule = schedule or Schedule()
    assert len(parameters) >= program.parameter_bytes, (len(parameters), program.parameter_bytes)
    ordered = merged(regions)
    table = (_Region * len(ordered))()
    for row, region in zip(table, ordered, strict=True):
        flags = region.initialised
        row.begin, row.end = region.address, region.address + region.bytes
        row.writable, row.granule = region.writable, region.granule
        row.initialised = None if flags is None else flags.ctypes.data
    executed = np.zeros(len(program.code), np.int64)
    request = _Request(
        program.code.ctypes.data,
        len(program.code),
        program.constants,
        program.register_bytes,
        (ctypes.c_int32 * 4)(*program.specials),
        parameters,
        len(parameters),
        ctypes.cast(table, ctypes.c_void_p),
        len(ordered),
        blocks,
        threads,
        program.shared_bytes if shared_bytes is None else shared_bytes,
        schedule.resident,
        schedule.slice,
        schedule.seed,
        schedule.races,
        schedule.limit,
        executed.ctypes.data,
    )
    result = _Result()
    if not _library().ptx_run(request, result):
        fault = result.fault.decode()
        line = int(fault.split()[1].rstrip(":")) if fault.startswith("line ") else None
        raise PtxFault(f"{program.name}: {fault}: {program.lines.get(line, '')}")
    counts = dict(zip(KINDS, result.counts, strict=True))
    return Counts(counts, set(program.code["line"][executed > 0].tolist()))
