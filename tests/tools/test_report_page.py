"""The page of a result file, made of invented figures."""

from __future__ import annotations

import base64
import html.parser
import re
from pathlib import Path

import bench_package  # noqa: F401
import made_up_results as made_up
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("seaborn")  # which needs pandas and matplotlib

from bench import tables
from bench.results import Results
from tools.report import __main__ as report

VOID = {"meta", "img", "source"}


@pytest.fixture(scope="module")
def results() -> Results:
    return made_up.results()


class Reader(html.parser.HTMLParser):
    """Reads a page and holds it to nesting; keeps tables' rows and what is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.cells: list[str] = []
        self.alternatives: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset"):
                self.loaded.append(value)
            if name == "alt":
                self.alternatives.append(value)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if "td" in self.open:
            self.cells.append(data)


@pytest.fixture(scope="module")
def folder(results: Results, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    results.save(folder / "results.json")
    assert report.main([str(folder / "results.json"), str(folder / "out")]) == 0
    return folder / "out"


def test_the_page_is_one_file_that_loads_nothing(folder: Path, results: Results) -> None:
    text = (folder / "report.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert len(reader.loaded) == 2 * len(report.PICTURES)
    assert all(uri.startswith("data:image/svg+xml;base64,") for uri in reader.loaded)
    assert "<script" not in text and "http" not in re.sub(r"data:[^\"]*", "", text)
    svg = base64.b64decode(reader.loaded[0].partition(",")[2]).decode()
    assert svg.startswith("<?xml") and "</svg>" in svg
    assert report.PICTURES["speedups"][0] in reader.alternatives
    for ratio in results.ratios:
        assert tables.figure(ratio.ratio) in reader.cells
    judged = [ratio.check() for ratio in results.ratios]
    for check in results.checks:
        assert check.name in reader.cells
    assert reader.cells.count("BELOW FLOOR") == sum(
        not check.above_floor for check in (*results.checks, *filter(None, judged))
    )


def test_the_page_escapes_what_it_is_given(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert "on Invented GPU &amp; more" in text
    assert "apex &lt;FusedAdam&gt;" in text and "<FusedAdam>" not in text


def test_the_pictures_of_a_readme_lie_beside_it(folder: Path) -> None:
    """Nothing else does: a machine that is lent hands few files back."""
    names = {path.name for path in folder.iterdir()}
    assert names == {"report.html", "roofline.png", "speedups.png", "memory.png"}
    for path in folder.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 1e6
    assert (folder / "report.html").stat().st_size < 4e6


def test_a_page_of_nothing_says_where_it_is_from(results: Results) -> None:
    text = report.page(Results(results.machine))
    assert "Invented GPU" in text and "<table" not in text and "<figure" not in text


def test_the_figures_that_sum_up(results: Results) -> None:
    some = Results(results.machine)
    pair = [r for r in results.ratios if r.ours == "torch_compat.AdamW" and r.dtype == "fp32"]
    some.ratios = [r for r in pair if r.shapes in ("tiny-1000", "lora-r16")]
    some.ratios = [r for r in some.ratios if r.baseline == "torch AdamW fused"]
    some.ratios[0].ratio, some.ratios[1].ratio = 2.0, 8.0
    assert report.summary(some) == [
        ("4×", "as fast as torch AdamW fused, many small tensors: geometric mean of 2 pairs")
    ]


def test_columns_of_which_nothing_is_known_are_left_out(results: Results) -> None:
    some = Results(results.machine, rows=results.rows[-2:])
    (steps,) = tables.tables(some).values()
    assert "launches" in steps and "host us" in steps
    for row in some.rows:
        row.launches = None
    (steps,) = tables.tables(some).values()
    assert "launches" not in steps
    assert tables.tables(Results(results.machine)) == {}
    assert "<th>launches" not in report.page(some)
