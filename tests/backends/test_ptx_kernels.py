"""Kernels as their compilers made them, executed on a CPU: bits, memory, races, planted faults.

nvcc's PTX of csrc/ for an H100, and Triton's. What runs here is a part; `test_whole_tables` runs
every test of the parity tables that way.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import host_module
import instructions_page
import pytest
import torch
from cases import ADAFACTOR
from entries import (
    DTYPES,
    STATE_DTYPES,
    VARIANTS,
    assert_stored,
    bucket_of,
    copied,
    entry_of,
    key_of,
    reference_of,
)
from prepared import OnBuckets
from ptx import nvcc
from ptx.machine import PtxFault, Schedule
from stored import bits

from fused_optim import AdamW
from fused_optim.backends import dispatch
from fused_optim.backends.interface import Launch

nvcc.find_nvcc()
TESTS = Path(__file__).parents[1]
CUDA_MODULE = TESTS / "support/ptx/cuda_module.py"
SHAPES = [(40, 300), (130, 264), (5, 7), (4, 3, 3, 3), (90, 2, 3), (3000,), (64, 520), (12, 16, 16)]
SHAPES += [(70_000,), (1,), (3, 1), (4, 72, 65)]


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in for `_C`. What a test sets of it holds for that test alone."""
    monkeypatch.setenv(dispatch.TEST_VARIABLE, "eager,cuda")
    found = host_module.backend_over(CUDA_MODULE)._C
    monkeypatch.setattr(found, "schedule", Schedule())
    monkeypatch.setattr(found, "architecture", found.architecture)
    monkeypatch.setattr(found, "edit", found.edit)
    yield found
    found.executed.clear()


def some_bucket(name: str, dtype: torch.dtype, mode: str, *, amsgrad: bool = False):
    key = key_of(dtype, mode, amsgrad, name)
    storages = [(grad, state) for grad in DTYPES for state in STATE_DTYPES]
    entries = [
        entry_of(key, (9,), grad=grad, state=state, number=number, row=number % 3)
        for number, (grad, state) in enumerate(storages)
    ]
    for number, size in enumerate((0, 1, 8, 1037, 8192 + 2053), 90):
        state = STATE_DTYPES[number % 3]
        entries.append(entry_of(key, (size,), grad=dtype, state=state, number=number))
    return bucket_of(key, entries)


@pytest.mark.parametrize("architecture", nvcc.ARCHITECTURES)
@pytest.mark.parametrize("name", ["adamw", "lion"])
@pytest.mark.parametrize(
    ("dtype", "mode"), VARIANTS, ids=lambda value: str(value).removeprefix("torch.")
)
def test_elementwise_bits(extension, architecture: str, name: str, dtype, mode: str) -> None:
    extension.architecture = architecture
    extension.schedule = Schedule(seed=5, slice=50)
    bucket, launch = some_bucket(name, dtype, mode), Launch(seed=0x123456789ABCDEF0)
    wanted = [reference_of(bucket, copied(entry), launch) for entry in bucket.entries]
    getattr(OnBuckets(host_module.backend_over(CUDA_MODULE)), f"{name}_")(bucket, launch)
    for entry, stored in zip(bucket.entries, wanted, strict=True):
        assert_stored(entry, stored, f"{bucket.key} {tuple(entry.param.shape)}")


def steps(
    monkeypatch: pytest.MonkeyPatch,
    backend: Any,
    make: Any,
    dtype: torch.dtype,
    shapes: list[tuple[int, ...]] = SHAPES,
) -> list[torch.Tensor]:
    """Take two steps on a backend; returns parameters and state."""
    monkeypatch.setitem(sys.modules, "fused_optim.backends.cuda", backend)
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    optimizer = make(params)
    for _ in range(2):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    state = [t for p in params for t in optimizer.state[p].values() if torch.is_tensor(t)]
    return [p.detach() for p in params] + state


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(
    ("number", "dtype", "norm"),
    [
        (0, torch.float32, None),
        (3, torch.bfloat16, None),
        (3, torch.bfloat16, 1.0),
        (1, torch.float16, None),
    ],
)
def test_adafactor_bits(monkeypatch, extension, number, dtype, norm, seed) -> None:
    """Those of csrc/ compiled for the host, whatever the order of blocks and warps."""

    def make(params):
        return ADAFACTOR[number].make(params, "cuda", max_grad_norm=norm)

    expected = steps(monkeypatch, host_module.backend(), make, dtype)
    extension.schedule = Schedule(seed=seed, slice=100 if seed else 0)
    actual = steps(monkeypatch, host_module.backend_over(CUDA_MODULE), make, dtype)
    for number, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert (bits(a) == bits(b)).all(), number


def default_adafactor(params):
    return ADAFACTOR[0].make(params, "cuda")


@pytest.mark.parametrize("blocks", [1, 3, 40])
def test_any_number_of_blocks(monkeypatch, extension, blocks: int) -> None:
    monkeypatch.setattr(extension, "grid", blocks)
    expected = steps(monkeypatch, host_module.backend(), default_adafactor, torch.bfloat16)
    extension.schedule = Schedule(seed=blocks, slice=200, resident=blocks)
    over = host_module.backend_over(CUDA_MODULE)
    actual = steps(monkeypatch, over, default_adafactor, torch.bfloat16)
    assert all((bits(a) == bits(b)).all() for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("state", [None, "int8"])
def test_clipping_and_8_bit_moments(monkeypatch, extension, state: str | None) -> None:
    def make(params):
        return AdamW(params, backend="cuda", max_grad_norm=1.0, state_dtype=state)

    expected = steps(monkeypatch, host_module.backend(), make, torch.bfloat16)
    actual = steps(monkeypatch, host_module.backend_over(CUDA_MODULE), make, torch.bfloat16)
    assert all((bits(a) == bits(b)).all() for a, b in zip(actual, expected, strict=True))


# Each changes one place of the PTX of the entry that runs, as a slip in the source would.

LARGE = [(300, 256), (70_000,), (4, 72, 300), (5, 7), (64, 40, 40)]


def executed_places(extension: Any, source: str, kernel: str, pattern: str) -> list[int]:
    """Return the lines of a source's PTX that match and that the last steps executed."""
    lines = nvcc.modules(extension.architecture)[source].splitlines()
    ran = {n for name, counts in extension.executed if name == kernel for n in counts.lines}
    return [number for number in sorted(ran) if re.search(pattern, lines[number - 1])]


def changed(source: str, line: int, pattern: str, by: str) -> Any:
    """Return an edit of one line of a source."""

    def edit(name: str, text: str) -> str:
        if name != source:
            return text
        lines = text.splitlines()
        lines[line - 1], found = re.subn(pattern, by, lines[line - 1])
        assert found == 1, lines[line - 1]
        return "\n".join(lines) + "\n"

    return edit


BARRIER = r"^\s*bar\.sync\s+0;$"
FAULTS = {
    "statistics": ("adafactor/statistics", "StatisticsKernel", BARRIER, "", 2),
    "update sums": ("adafactor/update_sums", "UpdateSumsKernel", BARRIER, "", 4),
    "finalise": ("adafactor/finalise", "FinaliseKernel", BARRIER, "", 8),
    "apply": ("adafactor/apply", "ApplyKernel", BARRIER, "", 0),
    "order": (
        *("adafactor/update_sums", "UpdateSumsKernel"),
        *(r"atom\.add\.acq_rel", "atom.add.relaxed", 0),
    ),
}
"""What is taken out, and how many of these are needless beside another one: a tile ends in a
barrier, behind that of the sum over a block, and before that which begins the next task."""


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(name, marks=[pytest.mark.long] if name in ("update sums", "finalise") else [])
        for name in FAULTS
    ],
)
def test_a_missing_barrier_or_order_is_found(monkeypatch, extension, fault: str) -> None:
    source, kernel, pattern, by, twice = FAULTS[fault]
    over = host_module.backend_over(CUDA_MODULE)
    monkeypatch.setattr(extension, "grid", 2)  # so that a block has several items
    extension.executed.clear()
    steps(monkeypatch, over, default_adafactor, torch.float32, LARGE)
    lines = executed_places(extension, source, kernel, pattern)
    missed = []
    for line in lines:
        extension.edit = changed(source, line, pattern, by)
        extension.schedule = Schedule(seed=line, slice=30)
        try:
            steps(monkeypatch, over, default_adafactor, torch.float32, LARGE)
        except PtxFault as error:
            assert re.search("a race|nothing has written", str(error)), error
        else:
            missed.append(line)
    assert len(lines) > len(missed), "nothing was found"
    assert len(missed) <= twice, missed


def test_a_loop_or_guard_that_goes_wrong_is_found(extension) -> None:
    """Each conditional branch that steps of odd sizes execute, taken the other way."""
    source, kernel, branch = "elementwise/lion", "LionKernel", r"^\s*@(!?)(%p\d+) bra"
    ops = OnBuckets(host_module.backend_over(CUDA_MODULE))

    def step() -> bool:
        """Return whether the step is right."""
        bucket, launch = some_bucket("lion", torch.float32, "none"), Launch()
        wanted = [reference_of(bucket, copied(entry), launch) for entry in bucket.entries]
        try:
            ops.lion_(bucket, launch)
            for entry, stored in zip(bucket.entries, wanted, strict=True):
                assert_stored(entry, stored, "step")
        except (PtxFault, AssertionError) as error:
            faults.append(error)
            return False
        return True

    faults: list[Exception] = []
    assert step()
    missed = []
    lines = executed_places(extension, source, kernel, branch)
    extension.schedule = Schedule(limit=1_000_000)
    for line in lines:
        extension.edit = changed(source, line, branch, r"\t@!\2 bra")
        if step():
            missed.append(line)
    found = [error for error in faults if isinstance(error, PtxFault)]
    assert len(lines) > 40 and len(missed) <= 2, missed
    assert len(found) > 10


def run_tests(*arguments: str, **variables: str) -> str:
    """Run tests in a process of their own; returns what pytest printed."""
    command = "import sys; del sys.path[0]; import pytest; sys.exit(pytest.main())"
    return run_python("-c", command, "-q", "-p", "no:cacheprovider", "-n0", *arguments, **variables)


def run_python(*arguments: str | Path, **variables: str) -> str:
    """Run Python in a process of its own; returns what it printed."""
    path = os.pathsep.join((*filter(None, sys.path), str(TESTS / "support")))
    run = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": path, **variables},
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    return run.stdout


WHOLE = ("tests/backends/test_elementwise_bits.py", "tests/backends/test_parity.py")


@pytest.mark.long
@pytest.mark.parametrize("architecture", nvcc.ARCHITECTURES)
def test_whole_tables(architecture: str) -> None:
    """The parity tables and the tables of bits as they are, over nvcc's PTX."""
    variables = {"FUSED_OPTIM_TEST_PTX": architecture}
    run_tests(*WHOLE, "-k", "cuda", FUSED_OPTIM_TEST_EXTENSION=str(CUDA_MODULE), **variables)


TRITON = ("-p", "ptx.triton_plugin", "-k")


def test_triton_bits() -> None:
    """Compiled for an H100: the same tests as run under Triton's interpreter, a few of them."""
    pytest.importorskip("triton.backends.nvidia")
    chosen = "(every_kernel_in_every_storage and triton and not amsgrad)"
    chosen += " and (bfloat16-split or bfloat16-stochastic or float32-none)"
    printed = run_tests(
        "tests/backends/test_elementwise_bits.py", *TRITON, chosen, TRITON_INTERPRET="0"
    )
    assert re.search(r"\b6 passed", printed), printed


@pytest.mark.long
@pytest.mark.parametrize("tests", WHOLE)
def test_whole_tables_of_triton(tests: str) -> None:
    pytest.importorskip("triton.backends.nvidia")
    run_tests(tests, *TRITON, "triton", TRITON_INTERPRET="0")


def test_triton_adafactor() -> None:
    """Compiled for an H100: one step of some kinds from a stored state, against the oracle."""
    pytest.importorskip("triton.backends.nvidia")
    chosen = "triton and one_step and (33-torch.Adafactor or 7-Adafactor or 8-Adafactor)"
    printed = run_tests("tests/backends/test_parity.py", *TRITON, chosen, TRITON_INTERPRET="0")
    assert re.search(r"\b7 passed", printed), printed


def test_counted_instructions_are_those_of_the_page() -> None:
    """What a change adds to a kernel is seen; `instructions_page` writes the table anew."""
    if instructions_page.written_compilers() != instructions_page.compilers():
        pytest.skip(f"the table was counted with {instructions_page.written_compilers()}")
    written = instructions_page.written()
    found = {"nvcc": instructions_page.of_nvcc(), "Triton": instructions_page.of_triton()}
    counted = {
        (name, compiler): sum(kinds.values())
        for compiler, counts in found.items()
        for name, kinds in counts.items()
    }
    assert counted == pytest.approx(written, rel=0.03, abs=0.06)


def test_a_missing_mask_is_found() -> None:
    """Every masked access of Triton's Lion and AdamW that a short tensor executes, without it."""
    pytest.importorskip("triton.backends.nvidia")
    found = json.loads(run_python(TESTS / "support/ptx/triton_masks.py", TRITON_INTERPRET="0"))
    for kernel, (tried, missed) in found.items():
        assert tried >= 6 and not missed, (kernel, missed)
