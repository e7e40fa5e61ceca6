"""The committed counts and the model's walks, against kernels that run on the host."""

from __future__ import annotations

from pathlib import Path

import bench_package  # noqa: F401
import host_module  # noqa: F401  skips where there is no compiler
import numpy as np
import pytest

pytest.importorskip("pandas")

from host_traces import bucket_of, traces

from bench import traffic
from bench.traffic import Kind
from fused_optim.backends import cuts
from tools.traffic import __main__ as host_counts
from tools.traffic import l2

KIND = Kind("adafactor", "bfloat16", "bfloat16", "stochastic", None)
STEP = 2048  # elements that a block touches at once: 8 warps of 256
KINDS = [
    Kind("adamw"),
    Kind("adamw", "bfloat16", "float32", "split", "bfloat16", amsgrad=True),
    Kind("adamw", "bfloat16", "bfloat16", "stochastic", "uint8"),
    Kind("adamw", "float32", "float32", "none", "uint8", amsgrad=True),
    Kind("adafactor", "bfloat16", "bfloat16", "split", None, scale_parameter=True),
    Kind("adafactor", "float16", "float32", "master", "bfloat16", beta1=True),
    Kind("adafactor", "float32", "float32", "none", None, factored=False),
    Kind("adafactor", "bfloat16", "bfloat16", "kahan", None, visited=True),
    Kind("adafactor", "bfloat16", "bfloat16", "split", None, factored=False, visited=True),
]
AGAIN = "the kernels changed: run `python -m tools.traffic`"


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k.op}-{k.dtype}-{k.mode}-{k.state_dtype}")
def test_counting_again_gives_the_committed_row(kind: Kind) -> None:
    found = host_counts.count(kind)
    assert found == {name: traffic.rows()[kind][name] for name in found}, AGAIN


def test_every_kind_is_in_the_file() -> None:
    assert {Kind(**row["kind"]) for row in traffic.counts()["rows"]} == set(host_counts.kinds())


def test_clipping_tiles_and_visits_are_the_committed_ones() -> None:
    counts = traffic.counts()
    assert list(host_counts.PASSES.values()) == counts["passes"], AGAIN
    assert host_counts.clip_counts() == counts["clip"], AGAIN
    assert host_counts.visit_limit() == counts["visit_limit"], AGAIN
    assert host_counts.walks() == counts["tiles"], AGAIN


def test_what_is_written_is_what_is_read(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host_counts, "kinds", lambda: KINDS[-2:])
    monkeypatch.setattr(host_counts, "walks", lambda: traffic.counts()["tiles"])
    host_counts.main(["--json", str(tmp_path / "traffic.json")])
    written = traffic.counts(tmp_path / "traffic.json")
    assert written["rows"] == [traffic.rows()[kind] for kind in KINDS[-2:]]
    assert written.keys() == traffic.counts().keys()


@pytest.mark.parametrize("blocks", [1, 4, 5, 16])
def test_blocks_touch_memory_in_the_models_order(
    blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix of 256 columns has tiles of 256 rows, one below the other."""
    monkeypatch.setattr(cuts, "chosen", lambda *asked: 2)
    bucket = bucket_of(KIND, [(12 * 256, 256)])
    grad = bucket.entries[0].grad
    for trace in traces(bucket, blocks):
        found = trace.of(grad)
        if len(found) == 0:
            continue
        index = (found["address"] - grad.data_ptr()) // 2
        tile, row = index // 65536, index // 256 % 256
        # Each of 8 warps walks down 32 rows of its own, and may load two at a time.
        granule = tile * 16 + row % 32 // 2
        sequences = [_first_seen(granule[found["block"] == block]) for block in range(blocks)]
        longest = max(len(each) for each in sequences)
        lockstep = [s[turn] for turn in range(longest) for s in sequences if turn < len(s)]
        walk = l2.counted_walks()[trace.name]
        assert lockstep == l2.order(np.full(12, 16), blocks, walk).tolist(), trace.name


@pytest.mark.parametrize("share", [0.4, 0.8, 1.1, 2.5])
def test_lines_of_the_kernels_miss_as_the_models_granules(share: float) -> None:
    """The traced addresses, replayed in lines of 128 bytes through the same cache."""
    shape, blocks = (1024, 512), 3
    bucket = bucket_of(KIND, [shape])
    entry = bucket.entries[0]
    capacity = share * entry.grad.nbytes
    expected = l2.adafactor(KIND, [shape], blocks, capacity, granule=STEP)
    cache = l2.Lru(capacity)
    for trace in traces(bucket, blocks):
        accesses = np.concatenate([trace.of(entry.grad), trace.of(entry.param)])
        if len(accesses) == 0:
            continue
        accesses = accesses[np.lexsort((accesses["block"], accesses["turn"]))]
        lines = _first_seen(accesses["address"] // 128)
        missed = sum(not cache.touch(line, 128) for line in lines)
        stored = accesses["bytes"][accesses["stores"] == 1].sum()
        assert 128 * missed + stored == pytest.approx(expected[trace.name], rel=0.05), trace.name


def _first_seen(values: np.ndarray) -> list[int]:
    """Return the distinct values in the order of their first appearance."""
    first = np.unique(values, return_index=True)[1]
    return values[np.sort(first)].tolist()
