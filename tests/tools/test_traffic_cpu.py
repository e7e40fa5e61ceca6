"""What the CPU kernels load and store: the committed counts, and the page that shows them."""

from __future__ import annotations

import bench_package  # noqa: F401
import pytest

pytest.importorskip("pandas")

import offloading_page
import written_pages

from bench import traffic
from fused_optim.ops import FAMILIES


@pytest.mark.long
@pytest.mark.timeout(900)
def test_counting_again_gives_the_committed_counts() -> None:
    pytest.importorskip("fused_optim._cpu", reason="there are no CPU kernels")
    import cpu_traffic  # skips where there is no compiler

    from fused_optim.backends import cpu

    found = {traffic.Kind(**row.pop("kind")): row for row in cpu_traffic.count(cpu)}
    assert found == offloading_page.counted(), "count again: python tests/support/cpu_traffic.py"


def test_every_kind_is_in_the_file() -> None:
    assert tuple(offloading_page.counted()) == offloading_page.KINDS


def test_updates_of_elements_move_what_they_move_on_a_gpu() -> None:
    kinds = [kind for kind in offloading_page.KINDS if FAMILIES[kind.op].elementwise]
    for kind in kinds:
        assert offloading_page.counted()[kind]["once"] == pytest.approx(
            traffic.moved(kind), abs=0.01
        )


def test_the_page_has_the_counts() -> None:
    page = offloading_page.PAGE.read_text()
    assert written_pages.filled(page, offloading_page.TABLES) == page
