"""The pictures and the page of a result file, drawn of invented figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import bench_package  # noqa: F401
import made_up_results as made_up
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("seaborn")  # which needs pandas and matplotlib

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.results import Results
from bench.setups import SETUPS
from tools.report import __main__ as report
from tools.report import bars, lines, style


@pytest.fixture(scope="module")
def results() -> Results:
    return made_up.results()


@pytest.fixture(scope="module")
def figures(results: Results) -> dict[str, Figure]:
    return report.draw_all(results)


def texts(figure: Figure) -> list[str]:
    shown = [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]
    return [line for text in shown for line in text.splitlines()]


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", report.PICTURES)
def test_all_text_is_inside_and_none_lies_on_another(figures, name: str) -> None:
    check_text(figures[name])


def test_a_panel_alone_has_room_for_its_text(results: Results) -> None:
    alone = made_up.results()
    alone.rows = [row for row in results.rows if row.op == "adamw" and "count" not in row.shapes]
    for draw in (lines.roofline, lines.scaling):
        figure = draw(alone)
        assert len(figure.axes) == 1
        check_text(figure)


def check_text(figure: Figure) -> None:
    """What is cut off at an edge or written over is what a look at one picture shows."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    width, height = figure.bbox.width, figure.bbox.height
    boxes, hidden = [], set().union(*map(_off_axis_ticks, figure.axes))
    for text in figure.findobj(lambda a: type(a).__name__ in ("Text", "Annotation")):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(renderer)
            if box.width and text not in hidden:
                boxes.append((text.get_text(), box))
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0, text
        assert box.x1 <= width and box.y1 <= height, text
    for i, (first, a) in enumerate(boxes):
        for second, b in boxes[i + 1 :]:
            across = min(a.x1, b.x1) - max(a.x0, b.x0)
            down = min(a.y1, b.y1) - max(a.y0, b.y0)
            assert across < 3 or down < 5, (first, second)


def _off_axis_ticks(axes) -> set:
    """Labels of ticks beyond the limits, which matplotlib makes and does not draw."""
    hidden = set()
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high:
                hidden |= {tick.label1, tick.label2}
    return hidden


def test_every_package_has_bars(figures, results: Results) -> None:
    shown = texts(figures["speedups"])
    sources = {SETUPS[ratio.baseline].source for ratio in results.ratios}
    for source in sources:
        names = {name for name, setup in SETUPS.items() if setup.source == source}
        assert names & set(shown), source
    assert "0.93×" in shown  # slower is said as plainly as faster


def test_bars_are_the_ratios(results: Results) -> None:
    some = made_up.results()
    some.ratios = [r for r in results.ratios if r.ours == "torch_compat.Adam"]
    axes = bars.speedups(some).axes[0]
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert sorted(ends) == pytest.approx(sorted(r.ratio for r in some.ratios))


def test_memory_bars_are_parameter_and_state(results: Results) -> None:
    some = made_up.results()
    some.memory = [m for m in results.memory if m.optimizer == "torch AdamW fused"]
    figure = bars.memory(some)
    assert len(figure.axes) == 2
    for axes, row in zip(figure.axes, some.memory, strict=True):
        state = row.state_bytes_per_parameter
        widths = [bar.get_width() for bar in axes.patches]
        assert widths == pytest.approx([row.bytes_per_parameter - state, state])
        assert f"{row.bytes_per_parameter:.2f}" in [text.get_text() for text in axes.texts]


def test_of_bars_of_one_size_the_best_known_is_named(results: Results) -> None:
    """Not the one with the shortest name, which may be the one that loses updates."""
    some = made_up.results()
    names = ("AdamW nearest", "AdamW stochastic", "torch AdamW fused", "torch Adam fused")
    row = some.memory[0]
    some.memory = [
        dataclasses.replace(row, optimizer=name, source=SETUPS[name].source) for name in names
    ]
    (axes,) = bars.memory(some).axes
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == ["AdamW stochastic", "torch AdamW fused"]


def test_lines_are_the_measured_points(results: Results) -> None:
    figure = lines.scaling(results)
    by_tensors = {tuple(line.get_ydata()) for line in figure.axes[0].lines}
    rows = [r for r in results.rows if r.optimizer == "Adafactor" and "count" in r.shapes]
    assert tuple(r.ms for r in sorted(rows, key=lambda r: r.tensors)) in by_tensors
    roofline = lines.roofline(results)
    rows = [r for r in results.rows if r.optimizer == "torch AdamW fused" and "size" in r.shapes]
    expected = tuple(r.copy_percent for r in sorted(rows, key=lambda r: r.parameters))
    assert expected in {tuple(line.get_ydata()) for line in roofline.axes[0].lines}


def test_of_many_lines_both_sides_are_kept(results: Results) -> None:
    some = [
        dataclasses.replace(results.rows[0], optimizer=f"{source} {i}", source=source)
        for source in ("fused_optim", "torch")
        for i in range(10)
    ]
    rows = Results(results.machine, rows=some).frame("rows")
    kept = lines.chosen(rows.assign(line=rows.optimizer), 7)
    assert [name.split()[0] for name in kept] == ["fused_optim"] * 4 + ["torch"] * 3


def test_what_was_not_measured_is_not_drawn(results: Results) -> None:
    assert report.draw_all(Results(results.machine)) == {}
    partly = Results(results.machine, rows=[r for r in results.rows if r.op == "adafactor"])
    assert len(lines.roofline(partly).axes) == 1


def test_a_cpu_without_counted_bytes_of_ours_has_no_roofline(results: Results) -> None:
    """Plain PyTorch's bytes aren't counted; torch's fused step alone would be a riddle."""
    theirs = [row for row in results.rows if row.source == "torch"]
    assert lines.roofline(Results(results.machine, rows=theirs)) is None


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(0.0161, "0.016×"), (0.1, "0.10×"), (0.998, "1.00×"), (1.5, "1.50×"), (12.34, "12.3×")],
)
def test_ratios_have_as_many_digits_as_they_need(ratio: float, text: str) -> None:
    assert bars.times(ratio) == text


def test_numbers_have_letters() -> None:
    assert [style.si(x) for x in (999, 1000, 1.5e6, 8.03e9, 1e12)] == [
        "999", "1k", "1.5M", "8.03G", "1T",
    ]  # fmt: skip


def test_pictures_are_the_same_for_the_same_figures(tmp_path: Path, results: Results) -> None:
    for name in ("a.svg", "b.svg"):
        figure = report.draw_all(results, dark=True)["memory"]
        report.save(figure, tmp_path / name, dark=True, kind="svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
