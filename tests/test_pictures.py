"""The pictures and the page of a result file, drawn of invented figures."""

from __future__ import annotations

from pathlib import Path

import bench_package  # noqa: F401
import made_up_results as made_up
import pytest

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench import (
    picture_bars,
    picture_curves,
    picture_lines,
    pictures,
    style,
)
from bench.results import Results
from bench.setups import SETUPS

VOID = {"meta", "img", "source"}


@pytest.fixture(scope="module")
def results() -> Results:
    return made_up.results()


@pytest.fixture(scope="module")
def figures(results: Results) -> dict[str, Figure]:
    return pictures.draw_all(results, made_up.curves(), style.LIGHT)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*pictures.PICTURES, "curves"])
def test_all_text_is_inside_and_none_lies_on_another(figures, name: str) -> None:
    """What is cut off at an edge or written over is what a look at one picture shows."""
    figure = figures[name]
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    width, height = figure.bbox.width, figure.bbox.height
    boxes = []
    for text in figure.findobj(lambda a: type(a).__name__ in ("Text", "Annotation")):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(renderer)
            if box.width and (text.axes is None or text not in _off_axis_ticks(text.axes)):
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
    axes = picture_bars.speedups(some, style.LIGHT).axes[0]
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert sorted(ends) == pytest.approx(sorted(r.ratio for r in some.ratios))


def test_memory_bars_are_parameter_and_state(results: Results) -> None:
    some = made_up.results()
    some.memory = [m for m in results.memory if m.optimizer == "torch AdamW fused"]
    figure = picture_bars.memory(some, style.LIGHT)
    assert len(figure.axes) == 2
    for axes, row in zip(figure.axes, some.memory, strict=True):
        state = row.state_bytes_per_parameter
        widths = [bar.get_width() for bar in axes.patches]
        assert widths == pytest.approx([row.bytes_per_parameter - state, state])
        assert f"{row.bytes_per_parameter:.3g}" in [text.get_text() for text in axes.texts]


def test_lines_are_the_measured_points(results: Results) -> None:
    figure = picture_lines.scaling(results, style.LIGHT)
    by_tensors = {tuple(line.get_ydata()) for line in figure.axes[0].lines}
    rows = [r for r in results.rows if r.optimizer == "Adafactor" and "count" in r.shapes]
    assert tuple(r.ms for r in sorted(rows, key=lambda r: r.tensors)) in by_tensors
    roofline = picture_lines.roofline(results, style.LIGHT)
    rows = [r for r in results.rows if r.optimizer == "torch AdamW fused" and "size" in r.shapes]
    expected = tuple(r.copy_percent for r in sorted(rows, key=lambda r: r.parameters))
    assert expected in {tuple(line.get_ydata()) for line in roofline.axes[0].lines}


def test_of_many_lines_both_sides_are_kept() -> None:
    series = [
        picture_lines.Series(str(i), source, ((1.0, 1.0),))
        for source in ("fused_optim", "torch")
        for i in range(10)
    ]
    kept = picture_lines.chosen(series, 7)
    assert [s.source for s in kept] == ["fused_optim"] * 4 + ["torch"] * 3


def test_what_was_not_measured_is_not_drawn(results: Results) -> None:
    assert pictures.draw_all(Results(results.machine), {"runs": []}, style.LIGHT) == {}
    partly = Results(results.machine, rows=[r for r in results.rows if r.op == "adafactor"])
    assert len(picture_lines.roofline(partly, style.LIGHT).axes) == 1


def test_several_runs_of_a_name_are_a_band() -> None:
    steps = [10, 20, 30]
    runs = [
        {"name": "float32", "optimizer": "adamw", "steps": steps, "losses": [3, 2, losses]}
        for losses in (1.0, 1.2)
    ]
    runs.append({"name": "x", "optimizer": "adafactor", "steps": steps, "losses": [9, 9, 9]})
    axes = picture_curves.curves({"runs": runs}, style.LIGHT).axes[0]
    assert list(axes.lines[0].get_ydata()) == pytest.approx([3, 2, 1.1])
    assert len(axes.collections) == 1
    assert [t.get_text() for t in axes.texts] == ["float32  1.100"]


def test_long_runs_are_smoothed_and_short_ones_are_not() -> None:
    assert picture_curves.smoothed([3.0, 1.0, 2.0]) == [3.0, 1.0, 2.0]
    noisy = [1.0 + (-1) ** i for i in range(1000)]
    assert all(0.8 < loss < 1.2 for loss in picture_curves.smoothed(noisy)[200:])


def test_labels_are_moved_apart_and_stay_in_place() -> None:
    assert style.spread([0.5, 0.1, 0.9], 0.05) == [0.5, 0.1, 0.9]
    moved = style.spread([0.99, 1.0, 0.98], 0.1)
    assert moved == pytest.approx([0.9, 1.0, 0.8])
    assert [style.si(x) for x in (999, 1000, 1.5e6, 8.03e9, 1e12)] == [
        "999", "1k", "1.5M", "8.03G", "1T",
    ]  # fmt: skip


def test_pictures_are_the_same_for_the_same_figures(tmp_path: Path, results: Results) -> None:
    for name in ("a.svg", "b.svg"):
        figure = pictures.draw_all(results, None, style.DARK)["memory"]
        pictures.save(figure, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
