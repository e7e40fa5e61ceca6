"""The page of costs on many GPUs: equal to what its script counts, and to the formulas it gives."""

from __future__ import annotations

import pytest
from processes import needs_gloo

pytest.importorskip("pandas")

import scaling_page as scaling

pytestmark = needs_gloo


def test_the_page_is_what_the_script_counts() -> None:
    page = scaling.PAGE.read_text()
    assert scaling.written_pages.filled(page, scaling.TABLES) == page


@pytest.mark.parametrize("mesh", [(1, 8), (1, 512), (64, 64)], ids=str)
def test_the_formulas_of_the_page_hold(mesh: tuple[int, int]) -> None:
    for model, shapes in scaling.MODELS.items():
        found = scaling.costs(model, *mesh)
        matrices = [shape for shape in shapes if len(shape) == 2]
        vectors = [shape for shape in shapes if len(shape) == 1]
        held = {shape: -(-shape[0] // mesh[1]) for shape in shapes}
        elements = sum(held[shape] * shape[1] for shape in matrices)
        of_vectors = sum(held[shape] for shape in vectors)
        assert found["AdamW"].params == 2 * (elements + of_vectors)
        assert found["AdamW"].state == 10 * (elements + of_vectors)
        assert found["AdamW, 16 bits"].state == 4 * (elements + of_vectors)
        assert found["AdamW"].reduces == found["AdamW, 16 bits"].reduces == ()
        statistics = 4 * sum(held[shape] + shape[1] for shape in matrices) + 4 * of_vectors
        norms = 4 * len(shapes)
        assert found["Adafactor, 16 bits"].state == statistics + norms
        assert found["Adafactor"].state == 2 * (elements + of_vectors) + statistics + norms
        first = 4 * sum(shape[1] + 3 for shape in matrices) + 4 * len(vectors) + 132
        assert found["Adafactor"].reduces == (first, 4 * len(shapes))


def test_the_statistics_cost_less_than_a_thousandth_of_fsdp2s_own() -> None:
    table = scaling.communication_table().splitlines()[2:]
    shares = [float(row.split("|")[-2].removesuffix("% ")) for row in table]
    assert len(shares) == len(scaling.MODELS) * len(scaling.MESHES)
    assert 0 < max(shares) < 0.1
