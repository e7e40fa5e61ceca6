"""A stand-in for `fused_optim._C` that executes nvcc's PTX of csrc/ on this CPU.

FUSED_OPTIM_TEST_EXTENSION=<this file> has a run of the tests use it, for the architecture that
FUSED_OPTIM_TEST_PTX names; host_module.backend_over(this file) is a backend on top of it. The
host's part of the ops, how much work there is and where sums lie, is the host module's.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import host_module

from fused_optim.ops import RECORD_SIZE, ROW_SIZE
from ptx import machine, nvcc, regions
from ptx.program import Program, assemble
from ptx.text import Module

_HOST = host_module.backend_over(host_module.path())._C
for _name in dir(_HOST):
    if _name.startswith(("adafactor_", "ADAFACTOR_")):
        globals()[_name] = getattr(_HOST, _name)

CHUNK_SIZE = _HOST.CHUNK_SIZE
ARCHITECTURES = "PTX"
THREADS = 256

architecture = os.environ.get("FUSED_OPTIM_TEST_PTX", nvcc.ARCHITECTURES[0])
schedule = machine.Schedule()
grid = 5
"""The most blocks of a launch: what the device holds at a time."""
edit: Callable[[str, str], str] = lambda source, text: text  # noqa: E731
"""Changes the PTX of a source of csrc/ before it is read, for tests that plant faults."""
executed: list[tuple[str, machine.Counts]] = []
"""The launches so far, by the kernel's name without its namespace."""


class Launch:
    """The arguments of `_C.Launch`."""

    def __init__(self, **arguments: int) -> None:
        self.__dict__.update(arguments)
        self.known = regions.records_at(self.records, self.tensors)

    def packed(self) -> bytes:
        """Return them as LaunchArguments of csrc/ops.h."""
        halves = (half & 0xFFFFFFFF for half in (self.seed_low, self.seed_high))
        return struct.pack(
            "<QQQqQQQqIIQ",
            *(self.records, self.rows, self.items, self.num_items),
            *(self.grad_scale, self.found_inf, self.clip, self.clip_stride),
            *halves,
            getattr(self, "shapes", 0),
        )

    def regions(self, *, factored: bool) -> Iterator[machine.Region]:
        records = self.known
        rows = 1 + max((record["row"] for record in records), default=0)
        yield machine.Region(self.records, 8 * RECORD_SIZE * self.tensors, granule=8)
        yield machine.Region(self.rows, 4 * ROW_SIZE * rows)
        yield from items(self.items, self.num_items)
        yield machine.Region(self.grad_scale, 4)
        yield machine.Region(self.found_inf, 4)
        yield machine.Region(self.clip, 4 * (1 + self.clip_stride * (self.tensors - 1)))
        if factored and records:
            size = len(_HOST.adafactor_shape(1, 1, 1))
            yield machine.Region(self.shapes, size * self.tensors, granule=8)
        yield from regions.of_tensors(records, self.dtype, self.mode, factored=factored)


def items(address: int, count: int) -> Iterator[machine.Region]:
    yield machine.Region(address, 8 * count)


def _scratch(launch: Launch, address: int, *, fresh: bool = False) -> machine.Region:
    floats = regions.scratch_floats(launch.known, _HOST.adafactor_scratch)
    return regions.of_scratch(address, floats, fresh=fresh)


@functools.cache
def _module(source: str, architecture: str, edit: Callable[[str, str], str]) -> Module:
    return Module(edit(source, nvcc.modules(architecture)[source]))


@functools.cache
def _program(
    source: str, parts: tuple[str, ...], architecture: str, edit: Callable[[str, str], str]
) -> Program:
    module = _module(source, architecture, edit)
    return assemble(module, module.entry(*parts))


def _run(
    source: str, *parts: str, work: int, arguments: bytes, reach: Iterable[machine.Region]
) -> None:
    if work == 0:
        return
    program = _program(source, parts, architecture, edit)
    counts = machine.run(
        program,
        blocks=min(work, grid),
        threads=THREADS,
        parameters=arguments,
        regions=reach,
        schedule=schedule,
    )
    executed.append((parts[0], counts))


def _variant(launch: Launch) -> str:
    return f"ILl{launch.dtype}ELNS_4ModeE{launch.mode}E"


def check_device(device: int) -> None:
    """Accept any device."""


def adamw_(launch: Launch, amsgrad: bool) -> None:
    _run(
        "elementwise/adamw",
        "AdamWKernel",
        f"{_variant(launch)}Lb{int(amsgrad)}E",
        work=launch.num_items,
        arguments=launch.packed(),
        reach=launch.regions(factored=False),
    )


def lion_(launch: Launch) -> None:
    _run(
        "elementwise/lion",
        "LionKernel",
        _variant(launch),
        work=launch.num_items,
        arguments=launch.packed(),
        reach=launch.regions(factored=False),
    )


def grad_square_sums(launch: Launch, clamps: bool, partials: int, sums: int) -> None:
    flags = np.zeros(launch.num_items, np.uint8)
    between = machine.Region(partials, 4 * launch.num_items, True, initialised=flags)
    reach = list(launch.regions(factored=False))
    _run(
        "gradients",
        "SquarePartialsKernel",
        work=launch.num_items,
        arguments=launch.packed() + struct.pack("<B7xQ", clamps, partials),
        reach=[*reach, between],
    )
    _run(
        "gradients",
        "SquareSumsKernel",
        work=launch.tensors,
        arguments=launch.packed() + struct.pack("<qQQ", launch.tensors, partials, sums),
        reach=[*reach, between, machine.Region(sums, 4 * launch.tensors, True)],
    )


def adafactor_statistics(
    launch: Launch, lines: int, num_lines: int, scratch: int, sums: int
) -> None:
    reach = [*launch.regions(factored=True), _scratch(launch, scratch, fresh=True)]
    _run(
        "adafactor/statistics",
        "StatisticsKernel",
        _variant(launch),
        work=launch.num_items,
        arguments=launch.packed() + struct.pack("<Q", scratch),
        reach=reach,
    )
    if sums:
        reach.append(machine.Region(sums, 4 * launch.tensors, True))
    _run(
        "adafactor/statistics",
        "FoldKernel",
        work=num_lines,
        arguments=launch.packed() + struct.pack("<QqQQ", lines, num_lines, scratch, sums),
        reach=[*reach, *items(lines, num_lines)],
    )


def adafactor_finalise_(
    lines: Launch, visits: int, num_visits: int, have_statistics: bool, scratch: int
) -> None:
    more = (visits, num_visits, have_statistics, lines.dtype, lines.mode, scratch)
    _run(
        "adafactor/finalise",
        "FinaliseKernel",
        work=lines.num_items + num_visits,
        arguments=lines.packed() + struct.pack("<QqB7xqi4xQ", *more),
        reach=[
            *lines.regions(factored=True),
            _scratch(lines, scratch),
            *items(visits, num_visits),
        ],
    )


def adafactor_update_sums(launch: Launch, scratch: int) -> None:
    _tiles("adafactor/update_sums", "UpdateSumsKernel", launch, scratch)


def adafactor_apply_(launch: Launch, scratch: int) -> None:
    _tiles("adafactor/apply", "ApplyKernel", launch, scratch, _variant(launch))


def _tiles(source: str, kernel: str, launch: Launch, scratch: int, *variant: str) -> None:
    _run(
        source,
        kernel,
        *variant,
        work=launch.num_items,
        arguments=launch.packed() + struct.pack("<Q", scratch),
        reach=[*launch.regions(factored=True), _scratch(launch, scratch)],
    )
