"""The model of L2: the order in which a grid uses memory, and what a cache keeps of it."""

from __future__ import annotations

import bench_package  # noqa: F401
import numpy as np
import pytest

pytest.importorskip("pandas")

from bench.traffic import Kind
from tools.traffic import l2
from tools.traffic.l2 import order

KIND = Kind("adafactor", "bfloat16", "bfloat16", "stochastic", None)
MIB = 1 << 20
SHAPE = (4096, 16384)  # 128 MiB of bfloat16
BACK_AND_FORTH = {"update_sums": (-1, -1)}


def moved(walks: dict[str, l2.Walk], capacity: float, blocks: int = 16) -> dict[str, float]:
    """Bytes per parameter and pass."""
    found = l2.adafactor(KIND, [SHAPE], blocks, capacity, walks, granule=4096)
    return {name: value / (SHAPE[0] * SHAPE[1]) for name, value in found.items()}


def test_blocks_take_turns() -> None:
    sizes = np.array([2, 2, 2, 1])
    assert order(sizes, 1).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert order(sizes, 2).tolist() == [0, 2, 1, 3, 4, 6, 5]
    assert order(sizes, 4).tolist() == [0, 2, 4, 6, 1, 3, 5]
    assert order(sizes, 9).tolist() == [0, 2, 4, 6, 1, 3, 5]


def test_walks_may_go_backwards() -> None:
    sizes = np.array([2, 2, 2, 1])
    assert order(sizes, 1, (-1, 1)).tolist() == [6, 4, 5, 2, 3, 0, 1]
    assert order(sizes, 1, (-1, -1)).tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert order(sizes, 2, (-1, 1)).tolist() == [6, 4, 2, 5, 3, 0, 1]


def test_a_block_that_is_done_goes_on() -> None:
    """The second block's short first item does not hold back its next."""
    assert order(np.array([3, 1, 1, 3]), 2).tolist() == [0, 3, 1, 5, 2, 6, 4, 7]


def test_the_cache_keeps_what_was_used_last() -> None:
    cache = l2.Lru(3.0)
    assert [cache.touch(g, 1.0) for g in (1, 2, 3, 1, 4, 1, 2)] == [0, 0, 0, 1, 0, 1, 0]
    assert not cache.touch(9, 3.0) and not cache.touch(1, 1.0)  # one that takes all of it


def test_what_fits_is_read_once() -> None:
    """The floor of design: 6 bytes per parameter."""
    expected = {"statistics": 2.0, "update_sums": 0.0, "apply": 4.0}
    assert moved({}, 300 * MIB) == expected
    assert moved(BACK_AND_FORTH, 300 * MIB) == expected


def test_a_cyclic_walk_through_too_much_misses_always() -> None:
    assert moved({}, 100 * MIB) == {"statistics": 2.0, "update_sums": 2.0, "apply": 6.0}


def test_parameters_drive_gradients_out() -> None:
    """What fits alone does not fit with the parameters."""
    assert moved({}, 140 * MIB)["update_sums"] == 0
    assert moved({}, 140 * MIB)["apply"] > 5.8


@pytest.mark.parametrize("blocks", [1, 16, 128])
@pytest.mark.parametrize("capacity", [16 * MIB, 40 * MIB])
def test_back_and_forth_finds_what_the_cache_holds(capacity: int, blocks: int) -> None:
    """All of it in the second pass; half in the third, where the parameters come between."""
    found = moved(BACK_AND_FORTH, capacity, blocks)
    share = capacity / (128 * MIB)
    assert found["statistics"] == 2
    assert found["update_sums"] == pytest.approx(2 - 2 * share, abs=0.03)
    assert found["apply"] == pytest.approx(6 - 2 * share / 2, abs=0.03)


def test_a_last_wave_that_is_not_full_costs_a_little() -> None:
    """256 tiles on 132 blocks: the second pass's first wave reaches back into the first."""
    found = moved(BACK_AND_FORTH, 40 * MIB, 132)["update_sums"]
    assert 2 - 2 * 40 / 128 + 0.03 < found < 2 - 2 * 40 / 128 + 0.1


def test_tiles_must_be_walked_backwards_inside_too() -> None:
    """A wave of 132 tiles of 512 KiB is more than the cache: what it last saw is their ends."""
    assert moved({"update_sums": (-1, 1)}, 40 * MIB, 132)["update_sums"] > 1.9


def test_vectors_are_read_with_their_full_second_moment() -> None:
    """Finalise, and from then on 4 bytes more; 16,384 elements in all, so no cache hides any."""
    found = l2.adafactor(KIND, [(1 << 20,)], 4, 1.0, {})
    per = {name: value / (1 << 20) for name, value in found.items()}
    assert per == {"statistics": 2.0, "finalise": 10.0, "update_sums": 6.0, "apply": 10.0}


def test_a_bucket_is_walked_as_a_whole() -> None:
    """Two matrices that each fit don't where both are of one launch."""
    one = l2.adafactor(KIND, [(2048, 2048)], 4, 12 * MIB, {})
    two = l2.adafactor(KIND, [(2048, 2048)] * 2, 4, 12 * MIB, {})
    assert one["update_sums"] == 0
    assert two["update_sums"] == 2 * 2 * 2048 * 2048


def test_large_buckets_may_be_cut_more_coarsely() -> None:
    """What they move is the same, to a hundredth."""
    fine, coarse = (
        l2.adafactor(KIND, [SHAPE], 132, 40 * MIB, BACK_AND_FORTH, granule=n)
        for n in (2048, 4 * l2.GRANULE)
    )
    assert sum(coarse.values()) == pytest.approx(sum(fine.values()), rel=0.01)


def test_empty_tensors_are_left_out() -> None:
    some, others = (l2.adafactor(KIND, s, 4, 1e6) for s in ([(3, 3)], [(0, 5), (3, 3)]))
    assert some == others and sum(some.values()) > 0
    assert order(np.array([], dtype=int), 4).size == 0


def test_what_was_not_counted_is_an_error() -> None:
    with pytest.raises(ValueError, match="float64.* was not counted"):
        l2.adafactor(Kind("adafactor", "float64"), [(9, 9)], 4, 1e6)
