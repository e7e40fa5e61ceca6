"""The executor of PTX finds what it is for: each fault, planted in a few lines, is reported."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
import pytest
from ptx import machine
from ptx.machine import PtxFault, Region, Schedule
from ptx.operands import UnknownInstruction
from ptx.program import assemble
from ptx.text import Module

HEADER = """.version 9.0
.target sm_90
.address_size 64
.visible .entry kernel(
	.param .u64 out,
	.param .u64 in
)
{
	.reg .pred %p<4>;
	.reg .b32 %r<16>;
	.reg .b64 %rd<16>;
	.reg .f32 %f<4>;
	.shared .align 16 .b8 buffer[256];
	ld.param.u64 %rd1, [out];
	ld.param.u64 %rd2, [in];
	mov.u32 %r1, %tid.x;
	mov.u32 %r2, %ctaid.x;
	mul.wide.u32 %rd3, %r1, 4;
	add.s64 %rd4, %rd1, %rd3;
	add.s64 %rd5, %rd2, %rd3;
"""
# Blocks add to a counter, the first word of `out`; the last one reads what the first stored.
HAND_OVER = """
	mov.u32 %r3, 7;
	setp.ne.s32 %p1, %r2, 0;
	@%p1 bra $ARRIVE;
	st.global.u32 [%rd4+256], %r3;
$ARRIVE:
	{barrier}
	setp.ne.s32 %p2, %r1, 0;
	@%p2 bra $ARRIVED;
	atom.add.{order}.gpu.global.u32 %r4, [%rd1], 1;
	st.shared.u32 [buffer], %r4;
$ARRIVED:
	bar.sync 0;
	ld.shared.u32 %r5, [buffer];
	setp.ne.s32 %p3, %r5, 1;
	@%p3 bra $END;
	ld.global.u32 %r6, [%rd4+256];
	st.global.u32 [%rd4+512], %r6;
$END:
	ret;
"""


def run(
    body: str,
    *,
    blocks: int = 1,
    threads: int = 32,
    regions: Iterable[Region] | None = None,
    **schedule: int,
) -> np.ndarray:
    """Run a body on 256 words of output, which are 0, and 32 words of input."""
    out, given = np.zeros(256, np.uint32), np.arange(32, dtype=np.uint32)
    if regions is None:
        regions = memory(out, writable=True), memory(given)
    program = assemble(Module(HEADER + body + "}\n"), "kernel")
    machine.run(
        program,
        blocks=blocks,
        threads=threads,
        parameters=struct.pack("<QQ", out.ctypes.data, given.ctypes.data),
        regions=regions,
        schedule=Schedule(**{"limit": 100_000} | schedule),
    )
    return out


def memory(array: np.ndarray, **more: object) -> Region:
    return Region(array.ctypes.data, array.nbytes, **more)


def test_lanes_part_and_meet_again() -> None:
    """Odd lanes take one way and even ones another; both arrive at a shuffle of all."""
    out = run("""
	and.b32 %r3, %r1, 1;
	setp.eq.s32 %p1, %r3, 0;
	@%p1 bra $EVEN;
	mul.lo.s32 %r4, %r1, 100;
	bra.uni $MEET;
$EVEN:
	add.s32 %r4, %r1, 1000;
$MEET:
	shfl.sync.bfly.b32 %r5|%p2, %r4, 1, 31, -1;
	st.global.u32 [%rd4], %r5;
	ret;
""")
    lanes = np.arange(32)
    values = np.where(lanes % 2, 100 * lanes, 1000 + lanes)
    assert (out[:32] == values[lanes ^ 1]).all()


def test_loops_of_different_lengths() -> None:
    out = run("""
	mov.u32 %r3, 0;
	mov.u32 %r4, 0;
$AGAIN:
	setp.ge.u32 %p1, %r4, %r1;
	@%p1 bra $DONE;
	add.s32 %r4, %r4, 1;
	add.s32 %r3, %r3, %r4;
	bra $AGAIN;
$DONE:
	st.global.u32 [%rd4], %r3;
	ret;
""")
    assert (out[:32] == [n * (n + 1) // 2 for n in range(32)]).all()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("st.global.u32 [%rd4+1020], %r1; ret;", "in none of the launch's tensors"),
        ("ld.global.u32 %r3, [%rd5+-8]; ret;", "in none of the launch's tensors"),
        ("st.global.u32 [%rd5], %r1; ret;", "a store to a read-only"),
        ("ld.global.u32 %r3, [%rd5+2]; ret;", "is not aligned"),
        ("ld.global.v2.u32 {%r3, %r4}, [%rd5]; ret;", "is not aligned"),
        ("ld.shared.u32 %r3, [buffer]; ret;", "that nothing has written"),
        ("mov.u32 %r4, buffer; st.shared.u32 [%r4+256], %r1; ret;", "of which the block has"),
        ("prefetch.global.L2 [%rd5+4096]; ret;", "in none of the launch's tensors"),
        ("$TOP: bra $TOP;", "an endless loop"),
        (
            "setp.lt.s32 %p1, %r1, 7; @%p1 bra $X; bar.sync 0; $X: ret;",
            "a barrier that 7 threads will not reach",
        ),
        (
            "setp.lt.s32 %p1, %r1, 7; @%p1 bra $X; bar.warp.sync -1; $X: ret;",
            "wait at an exchange",
        ),
        ("shfl.sync.bfly.b32 %r3, %r1, 1, 31, 65535; ret;", "a shuffle of a part of a warp"),
    ],
)
def test_faults_are_found(body: str, why: str) -> None:
    with pytest.raises(PtxFault, match=why):
        run(body)


@pytest.mark.parametrize(
    "body",
    [
        "st.global.u32 [%rd4+896], %r1; ret;",
        "ld.global.u32 %r3, [%rd5]; ret;",
        "mov.u32 %r4, buffer; mad.lo.u32 %r4, %r1, 4, %r4; st.shared.u32 [%r4], %r1; ret;",
        "bar.sync 0; ret;",
        "shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1; ret;",
    ],
)
def test_what_is_allowed_is_no_fault(body: str) -> None:
    run(body)


def test_scratch_memory_that_nothing_has_written() -> None:
    words = np.zeros(128, np.uint32)
    flags = np.zeros(128, np.uint8)
    scratch = memory(words, writable=True, initialised=flags)
    address = str(words.ctypes.data)
    body = f"add.s64 %rd6, %rd3, {address}; {{0}} ld.global.u32 %r3, [%rd6+{{1}}]; ret;"
    with pytest.raises(PtxFault, match="scratch memory at .* that nothing has written"):
        run(body.format("", 0), regions=[scratch])
    run(body.format("st.global.u32 [%rd6], %r1;", 0), regions=[scratch])
    assert flags[:32].all() and not flags[32:].any()
    with pytest.raises(PtxFault, match="that nothing has written by thread 31"):
        run(body.format("", 4), regions=[scratch])


NEIGHBOUR = """
	mov.u32 %r6, buffer;
	mad.lo.u32 %r3, %r1, 4, %r6;
	st.shared.u32 [%r3], %r1;
	{0}
	xor.b32 %r4, %r3, {1};
	ld.shared.u32 %r5, [%r4];
	{0}
	st.shared.u32 [%r3], %r5;
	ret;
"""


@pytest.mark.parametrize("distance", [4, 128])
def test_races_within_a_block(distance: int) -> None:
    """Of two lanes of a warp, and of two warps; a warp's own barrier orders the former alone."""
    of_block = NEIGHBOUR.format("bar.sync 0;", distance)
    of_warp = NEIGHBOUR.format("bar.warp.sync -1;", distance)
    run(of_block, threads=64)
    unordered = "a race with a .* that no barrier orders|that nothing has written"
    with pytest.raises(PtxFault, match=unordered):
        run(NEIGHBOUR.format("", distance), threads=64)
    if distance == 4:
        run(of_warp, threads=64)
    else:
        with pytest.raises(PtxFault, match=unordered):
            run(of_warp, threads=64)


@pytest.mark.parametrize("seed", range(4))
def test_a_counter_orders_two_blocks(seed: int) -> None:
    ordered = HAND_OVER.format(barrier="bar.sync 0;", order="acq_rel")
    out = run(ordered, blocks=2, threads=64, seed=seed, slice=3)
    assert out[0] == 2
    assert (out[128:192] == 7).all() or not out[
        128:192
    ].any()  # as the first block came first or last


@pytest.mark.parametrize(
    ("barrier", "order"), [("bar.sync 0;", "relaxed"), ("", "acq_rel")], ids=["order", "barrier"]
)
def test_races_between_blocks(barrier: str, order: str) -> None:
    """The counter hands on nothing; or the other warp's stores may come after it."""
    body = HAND_OVER.format(barrier=barrier, order=order)
    with pytest.raises(PtxFault, match=r"a race with a (store|load) .* that no (counter|barrier)"):
        for seed in range(8):
            run(body, blocks=2, threads=64, seed=seed, slice=5)


@pytest.mark.parametrize(
    "body",
    [
        "mul.ftz.f32 %f1, %f2, %f3; ret;",
        "fma.rn.f32 %f1, %f2, %f3, %f1; ret;",
        "atom.global.exch.u32 %r3, [%rd1], 1; ret;",
        "ld.volatile.global.u32 %r3, [%rd1]; ret;",
        "shfl.sync.down.b32 %r3, %r1, 1, 31, -1; ret;",
        "add.s64 %rd6, %r1, %rd1; ret;",
    ],
)
def test_unknown_instructions_are_refused(body: str) -> None:
    """None is taken for another that looks like it."""
    with pytest.raises(UnknownInstruction, match="^line "):
        run(body)
