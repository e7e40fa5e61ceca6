"""Triton's kernels, compiled for an H100 and executed on this CPU in place of their launches.

A process that does so must not interpret Triton: TRITON_INTERPRET=0 before anything imports it.
`installed` sends the launches of fused_optim.triton_kernels here.
"""

from __future__ import annotations

import contextlib
import functools
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import triton
from fused_optim.triton_kernels import launching
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fused_optim.backends.compiled import MODES
from fused_optim.backends.interface import BucketKey
from fused_optim.precision import DTYPE_TAGS
from ptx import machine, regions
from ptx.program import Program, assemble
from ptx.text import Module

TARGET = GPUTarget("cuda", 90, 32)
OPTIONS = ("num_warps", "num_stages")
TYPES = {torch.int64: "*i64", torch.int32: "*i32", torch.float32: "*fp32", torch.uint8: "*u8"}
SIZES = {"i32": "<i", "i64": "<q", "fp32": "<f"}

schedule = machine.Schedule()
edit: Callable[[str, str], str] = lambda name, text: text  # noqa: E731
"""Changes the PTX of a kernel before it is read, for tests that plant faults."""
executed: list[tuple[str, machine.Counts]] = []
"""The launches so far, by the kernel's name."""
_stepped: list[BucketKey] = []  # of the bucket whose launch was prepared last


@functools.cache
def compiled(
    kernel: Any, signature: tuple, constants: tuple, options: tuple, edit: Callable[[str, str], str]
) -> tuple[Program, int, int]:
    """Return a kernel's program, the shared memory of a block, and its threads."""
    places = {(kernel.arg_names.index(name),): value for name, value in constants}
    source = ASTSource(fn=kernel, signature=dict(signature), constexprs=places)
    made = triton.compile(
        source, target=TARGET, options={"enable_fp_fusion": False, **dict(options)}
    )
    module = Module(edit(made.metadata.name, made.asm["ptx"]))
    (entry,) = module.entries
    return assemble(module, entry), made.metadata.shared, made.metadata.num_warps * 32


def execute(kernel: Any, *args: Any, grid: tuple[int], warmup: bool, **named: Any) -> None:
    """Run a launch in place of JITFunction.run; a compilation ahead of time runs nothing."""
    if warmup:
        return
    options = tuple((name, named.pop(name)) for name in OPTIONS if name in named)
    named.pop("enable_fp_fusion", None)
    given = dict(zip(kernel.arg_names, args, strict=False)) | named
    parameters = [p for p in kernel.params if not p.is_constexpr]
    signature = {
        name: "constexpr" if kernel.params[number].is_constexpr else _type(given[name])
        for number, name in enumerate(kernel.arg_names)
    }
    constants = {p.name: given[p.name] for p in kernel.params if p.is_constexpr}
    program, shared, threads = compiled(
        kernel, tuple(signature.items()), tuple(constants.items()), options, edit
    )
    counts = machine.run(
        program,
        blocks=grid[0],
        threads=threads,
        parameters=_packed([(signature[p.name], given[p.name]) for p in parameters], program),
        regions=_regions(kernel.__name__, given),
        shared_bytes=shared,
        schedule=schedule,
    )
    executed.append((kernel.__name__, counts))


def _type(value: Any) -> str:
    if torch.is_tensor(value):
        return TYPES[value.dtype]
    return "i32"


def _packed(values: list[tuple[str, Any]], program: Program) -> bytes:
    text = b""
    for kind, value in values:
        code = "<Q" if kind.startswith("*") else SIZES[kind]
        size = struct.calcsize(code)
        text += bytes(-len(text) % size)
        text += struct.pack(code, value.data_ptr() if torch.is_tensor(value) else value)
    return text + bytes(max(0, program.parameter_bytes - len(text)))


def _regions(kernel: str, given: dict[str, Any]) -> Iterator[machine.Region]:
    """Yield what a launch may reach. Of its own arguments it writes sums and scratch alone."""
    factored = "scratch" in given
    for name, value in given.items():
        if not torch.is_tensor(value) or name == "records" or value.numel() == 0:
            continue
        size = value.numel() * value.element_size()
        written = name in ("sums", "square_sums", "partials")
        if name == "scratch":
            fresh = kernel == "statistics_kernel"
            yield regions.of_scratch(value.data_ptr(), value.numel(), fresh=fresh)
        else:
            yield machine.Region(value.data_ptr(), size, written, value.element_size())
    records = given["records"]
    yield machine.Region(records.data_ptr(), 8 * records.numel(), granule=8)
    known = regions.records_at(records.data_ptr(), len(records))
    dtype, mode = DTYPE_TAGS[_stepped[0].dtype], MODES[_stepped[0].mode]
    yield from regions.of_tensors(known, dtype, mode, factored=factored)


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Execute launches here while the context is open."""
    from fused_optim import triton_kernels

    arguments = launching.arguments_of

    def noting(tables: Any, name: str) -> tuple:
        _stepped[:] = [tables.key]
        return arguments(tables, name)

    users = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith(triton_kernels.__name__) and hasattr(module, "arguments_of")
    ]
    with contextlib.ExitStack() as stack:
        patch = mock.patch.object
        stack.enter_context(patch(triton.JITFunction, "run", execute))
        stack.enter_context(patch(launching, "_on_device", lambda kernel, device, run: run({})))
        for module in users:
            stack.enter_context(patch(module, "arguments_of", noting))
        yield
