"""How the CUDA backend cuts a bucket of Adafactor into tiles, and shares them out among blocks."""

from __future__ import annotations

import math
from typing import Any

import bench_package  # noqa: F401
import host_module
import pytest
import torch

from bench.shapes import SHAPES, matrix
from fused_optim.backends import cuts
from fused_optim.backends.interface import BucketKey, Launch, Shape
from fused_optim.plan import maps
from fused_optim.plan.records import COLUMN, matrix_shape

BLOCKS = 264  # of an H100 or H200: two for each of 132 processors
KEY = BucketKey("adafactor", torch.device("cpu"), torch.bfloat16, "stochastic", False, False)
LISTS = [name for name in SHAPES if name != "smoke"]  # which has less than a tile for each block


@pytest.fixture
def extension() -> Any:
    return host_module.backend()._C


def records_of(shapes: list[tuple[int, ...]], cut: int) -> torch.Tensor:
    """Return the records of a list as far as maps are made from them."""
    columns = ("batch", "rows", "cols", "numel", "global_numel", "global_rows", "global_cols")
    records = torch.zeros(len(shapes), len(COLUMN), dtype=torch.int64)
    for record, shape in zip(records, shapes, strict=True):
        batch, rows, cols = matrix_shape(torch.Size(shape))
        numel = math.prod(shape)
        values = (batch, rows, cols, numel, numel, rows, cols)
        record[[COLUMN[name] for name in columns]] = torch.tensor(values)
    records[:, COLUMN["cut"]] = cut
    return records


def cut_of(extension: Any, shapes: list[tuple[int, ...]]) -> int:
    return cuts.chosen(extension, [Shape(*matrix_shape(torch.Size(s))) for s in shapes], KEY)


def shares(records: torch.Tensor, name: str, sizes: Any, blocks: int) -> torch.Tensor:
    """Return the elements of each block in the launches that walk one of the maps."""
    op = "adafactor_finalise_" if name == "visits" else "adafactor_apply_"
    needs = host_module.backend().needs(op, Launch(sums_wanted=False))
    found = torch.zeros(blocks, dtype=torch.float64)
    items = maps.packed(records, needs.maps[name], needs.sizes[name]).tolist()
    for item, (tensor, part) in enumerate(items):
        found[item % blocks] += sizes(tensor, part)
    return found


@pytest.mark.parametrize("name", LISTS)
def test_blocks_have_equally_much_to_do(extension: Any, name: str) -> None:
    """A processor's two blocks walk tiles; then one walks the small tensors, each whole."""
    shapes = SHAPES[name]
    records = records_of(shapes, cut_of(extension, shapes))
    tile_sizes, numels = {}, [math.prod(s) for s in shapes]

    def size_of(tensor: int, part: int) -> int:
        shape = tuple(records[tensor, [COLUMN[n] for n in ("batch", "rows", "cols", "cut")]])
        shape = tuple(map(int, shape))
        if shape not in tile_sizes:
            tile_sizes[shape] = extension.adafactor_tile_sizes(*shape)
        return tile_sizes[shape][part]

    tiles = shares(records, "tiles", size_of, BLOCKS)
    visits = shares(records, "visits", lambda tensor, part: numels[tensor], BLOCKS // 2)
    assert tiles.sum() + visits.sum() == sum(numels)
    busiest = 2 * tiles.max() + visits.max()
    assert busiest / (sum(numels) / (BLOCKS // 2)) <= 1.05


@pytest.mark.parametrize("name", [*SHAPES, "16 large ones"])
def test_scratch_stays_small(extension: Any, name: str) -> None:
    """It is below 16 MiB or 1 % of the parameters' bytes, whichever is more.

    The parts of Llama-8B on one of 8 ranks have too few rows for that: their matrices' column sums
    alone are as long as 1/128 to 1/512 of them. Smaller tiles would share out 16 matrices of
    62,500,000 elements better, but there is no room for their sums.
    """
    shapes = SHAPES.get(name, [matrix(62_500_000)] * 16)
    cut, numel = cut_of(extension, shapes), sum(map(math.prod, shapes))
    floats = [extension.adafactor_scratch(*matrix_shape(torch.Size(s)), cut) for s in shapes]
    share = {"llama-8b-1of8": 0.0112, "16 large ones": 0.0103}.get(name, 0.01)
    most = max(16 << 20, share * 2 * numel)
    assert 4 * sum(floats) <= most


@pytest.mark.parametrize("cut", range(6))
@pytest.mark.parametrize(
    "shape", [(1, 4096, 4096), (1, 1, 100_001), (3, 70, 900), (1, 16, 14_336), (9, 3, 3)]
)
def test_sizes_of_tiles_add_up(extension: Any, shape: tuple[int, int, int], cut: int) -> None:
    sizes = extension.adafactor_tile_sizes(*shape, cut)
    assert len(sizes) == extension.adafactor_tiles(*shape, cut)
    assert sum(sizes) == math.prod(shape) and min(sizes) > 0
    assert max(sizes) <= 262_144 >> cut


def test_maps_begin_with_the_largest_tiles(extension: Any) -> None:
    records = records_of([(300,), (9000,), (16_384,), (64, 300)], 5)
    needs = host_module.backend().needs("adafactor_apply_", Launch())
    items = maps.packed(records, needs.maps["tiles"], needs.sizes["tiles"]).tolist()
    # 32 rows of the matrix by 256 or 44 columns; one block visits the vector of 300 elements.
    assert items == [[1, 0], [2, 0], [2, 1], [3, 0], [3, 2], [3, 1], [3, 3], [1, 1]]


def test_small_tensors_alone_stay_whole(extension: Any) -> None:
    """One launch makes their whole step: four more would take longer than they save."""
    assert cut_of(extension, [(256, 256), (3,)]) == 0
    assert extension.adafactor_visited(1, 256, 256, 0)
    assert cut_of(extension, [(256, 256), (256, 257)]) == extension.ADAFACTOR_MOST_CUT
