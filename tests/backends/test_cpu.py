"""The CPU backend beside its bits: threads, instruction sets, layouts, and where it is chosen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import isa_worker
import numpy as np
import pytest
import torch
from cases import ONE_OF_EACH, TensorCase, modes
from optimizer_table import assert_identical, snapshot
from parity import Bench
from prepared import OnBuckets

import fused_optim
from fused_optim.backends import dispatch
from fused_optim.backends.interface import Bucket, BucketKey, Launch, TensorEntry
from fused_optim.ops import AdamWRow

pytest.importorskip("fused_optim._cpu", reason="there are no CPU kernels")

from fused_optim.backends import cpu  # noqa: E402

ADAFACTOR = next(case for case in ONE_OF_EACH if case.family == "adafactor")
ISAS = ("x86-64-v2", "x86-64-v3", "x86-64-v4")
SUPPORT = Path(__file__).parents[1] / "support"


def trained(
    threads: int, shapes: tuple, make: type = fused_optim.torch_compat.AdamW, **options
) -> list:
    """Return what three steps make of bfloat16 parameters, on some number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        source = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(n, generator=source).bfloat16()) for n in shapes]
        optimizer = make(params, backend="cpu", **options)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(p.shape, generator=source).bfloat16()
            optimizer.step()
        return [*snapshot(optimizer), optimizer.grad_norm]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("sizes", [(100_003,), (7,) * 500 + (20_000,), (0, 1, 8192, 0)])
def test_results_do_not_depend_on_threads(sizes: tuple[int, ...]) -> None:
    alone = trained(1, sizes, max_grad_norm=1.0)
    for threads in (2, 3, 8):
        assert_identical(trained(threads, sizes, max_grad_norm=1.0), alone)


SHAPES = (
    (400, 500),
    (40, 30),
    (9,),
    (300, 7, 80),
    (200_000,),
    (1, 140_000),
    (50_000, 3, 3),
    (0, 4),
)
"""Tensors of each kind of tile, some small enough for one thread, others for all threads."""


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_sums_do_not_depend_on_threads(max_grad_norm: float | None) -> None:
    options = {"make": fused_optim.Adafactor, "beta1": 0.9, "max_grad_norm": max_grad_norm}
    alone = trained(1, SHAPES, **options)
    for threads in (2, 3, 8):
        assert_identical(trained(threads, SHAPES, **options), alone)


def test_the_threads_are_torchs() -> None:
    assert Path(cpu._openmp_runtime()).is_relative_to(Path(torch.__file__).parent)
    assert cpu._ops.extension.use_runtime(cpu._openmp_runtime())


def test_without_a_runtime_one_thread_does_all() -> None:
    threaded = trained(2, (50_000,))
    assert not cpu._ops.extension.use_runtime("")
    try:
        assert_identical(trained(2, (50_000,)), threaded)
    finally:
        cpu._ops.extension.use_runtime(cpu._openmp_runtime())


def test_several_python_threads_step_at_once() -> None:
    expected, results = trained(2, (30_000, 5)), []

    def work() -> None:
        results.append(trained(2, (30_000, 5)))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in results:
        assert_identical(result, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_steps() -> None:
    """As a DataLoader's worker might, which has one thread.

    The parent's threads don't survive a fork. torch's own operators wait for them for ever if the
    child does not set the number of threads to 1, and so would a step.
    """
    expected = trained(2, (50_000,))  # the parent's threads have run
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
        child = os.fork()
    if child == 0:
        result = b"0"
        try:
            signal.alarm(60)  # a child that waits for threads is ended
            torch.set_num_threads(1)
            assert_identical(trained(1, (50_000,)), expected)
            result = b"1"
        finally:
            os.write(writer, result)
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 1) == b"1"
    os.waitpid(child, 0)


@pytest.mark.skipif(cpu.instruction_set() not in ISAS, reason="of x86-64")
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_bits(isa: str, tmp_path: Path) -> None:
    if ISAS.index(isa) > ISAS.index(cpu.instruction_set()):
        pytest.skip(f"this machine has no {isa}")
    env = {**os.environ, "FUSED_OPTIM_CPU_ISA": isa}
    command = [sys.executable, str(SUPPORT / "isa_worker.py")]
    run = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.split() == [isa, "clean", isa_worker.adafactor_digest()]


# --- Adafactor's tiles ----------------------------------------------------------------------------

LARGE = [
    *((300, 700), (70_000, 3), (3, 50_000), (20, 9000), (2, 9000, 9), (150_001,), (1, 140_000)),
    *((700, 5, 60), (30_000, 3, 3), (2000, 1, 1), (1, 1024, 1), (20, 512, 2), (2048, 2049)),
]
"""Tensors of several tiles, strips, line jobs, and chains of chains."""


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_every_kind_of_tile_is_the_oracles(shape: tuple[int, ...]) -> None:
    dtype, mode = [(torch.float32, "none"), (torch.bfloat16, "split")][LARGE.index(shape) % 2]
    bench = Bench(ADAFACTOR, [TensorCase(shape, dtype, mode)], "cpu")
    bench.randomise(5)
    bench.step_and_check(5, bench.set_gradients(-2, 0))


def test_scratch_is_a_small_share() -> None:
    for shape in ((1, 8192, 8192), (1, 128_256, 4096), (8, 4096, 14_336), (300_000, 3, 3)):
        numel = shape[0] * shape[1] * shape[2]
        assert 4 * cpu._ops.extension.adafactor_scratch(*shape) < 0.01 * 4 * numel


# --- random lists ---------------------------------------------------------------------------------


def random_tensor(rng: np.random.Generator) -> TensorCase:
    dtype = [torch.float32, torch.bfloat16, torch.float16][rng.integers(3)]
    shape = tuple(int(n) for n in rng.integers(0, 40, rng.integers(0, 4)))
    grad = [None, torch.float32, torch.bfloat16, torch.float16, torch.float64][rng.integers(5)]
    state = [torch.float32, torch.bfloat16, torch.float16][rng.integers(3)]
    return TensorCase(shape, dtype, str(rng.choice(modes(dtype))), grad, state)


def check_random_list(seed: int) -> None:
    """Hold a step of a random list of tensors, some of them views, to the oracle's."""
    rng = np.random.default_rng(seed)
    case = ONE_OF_EACH[rng.integers(len(ONE_OF_EACH))]
    tensors = [random_tensor(rng) for _ in range(rng.integers(1, 12))]
    bench = Bench(case, tensors, "cpu", seed=seed)
    bench.slack = 2.0
    for p in bench.params:
        if p.dim() == 2 and rng.integers(3) == 0:
            p.data = p.data.t().contiguous().t()
        elif p.numel() and rng.integers(3) == 0:
            room = torch.zeros(p.numel() + 1, dtype=p.dtype)
            p.data = room[1:].view(p.shape)
    bench.randomise(t := int(rng.integers(1, 100)))
    bench.step_and_check(t, bench.set_gradients())


@pytest.mark.parametrize("part", range(4))
def test_random_lists(part: int) -> None:
    for seed in range(100 * part, 100 * part + 100):
        check_random_list(seed)


@pytest.mark.long
@pytest.mark.parametrize("part", range(20))
def test_ten_thousand_random_lists(part: int) -> None:
    for seed in range(1000 + 500 * part, 1500 + 500 * part):
        check_random_list(seed)


# --- large tensors --------------------------------------------------------------------------------


def test_offsets_beyond_32_bits() -> None:
    """Memory that nobody touches costs nothing: the map has the last chunk alone."""
    count, ops = 2**31 + 9, OnBuckets(cpu)
    values = {name: torch.randn(9).bfloat16() for name in ("param", "grad", "exp_avg")}
    values["exp_avg_sq"] = torch.rand(9).bfloat16()

    def far(tensor: torch.Tensor) -> torch.Tensor:
        room = torch.empty(count, dtype=tensor.dtype)
        room[-9:] = tensor
        return room

    key = BucketKey("adamw", torch.device("cpu"), torch.bfloat16, "nearest", False, False)
    near, distant = (
        TensorEntry(**{name: make(tensor) for name, tensor in values.items()})
        for make in (torch.clone, far)
    )
    last = torch.tensor([[0, (count - 1) // 8192]], dtype=torch.int32)
    bucket = Bucket(key, entries=[distant], rows=[AdamWRow()])
    ops.plan(bucket)._map = lambda name, counts: last
    ops.adamw_(bucket, Launch())
    ops.adamw_(Bucket(key, entries=[near], rows=[AdamWRow()]), Launch())
    assert torch.equal(distant.param[-9:], near.param)


# --- where it is chosen ---------------------------------------------------------------------------


def test_cpu_tensors_are_its(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    for named in ("auto", "cpu", "cuda", "triton"):
        assert dispatch.choose(named, "adamw_", device) == "cpu"
    assert dispatch.choose("eager", "adamw_", device) == "eager"
    assert dispatch.choose("auto", "adamw_", device, torch.float64) == "eager"
    assert dispatch.choose("cpu", "adamw_", torch.device("cuda")) == "eager"
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "eager")
    assert dispatch.choose("auto", "adamw_", device) == "eager"


def test_eager_has_the_ops_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cpu, "adafactor_apply_")
    dispatch._why_not.cache_clear()
    try:
        p = torch.nn.Parameter(torch.ones(3, 4))
        p.grad = torch.ones_like(p)
        optimizer = fused_optim.Adafactor([p], backend="cpu")
        optimizer.step()
        assert not optimizer._plans and (p < 1.0).all()
    finally:
        monkeypatch.undo()
        dispatch._why_not.cache_clear()


def test_an_installation_without_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "load", lambda name: __import__("no_such_module"))
    dispatch._why_not.cache_clear()
    try:
        assert dispatch.choose("auto", "adamw_", torch.device("cpu")) == "eager"
        with pytest.raises(RuntimeError, match="backend='cpu' can't run .* its module does not"):
            fused_optim.AdamW([torch.nn.Parameter(torch.ones(1))], backend="cpu")
    finally:
        monkeypatch.undo()
        dispatch._why_not.cache_clear()
