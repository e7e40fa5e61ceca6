"""The committed counts, the times predicted from them, and the page that shows both."""

from __future__ import annotations

import json
from pathlib import Path

import bench_package  # noqa: F401
import pytest
import torch

pytest.importorskip("pandas")
pytest.importorskip("rich")

from bench import pages, traffic
from bench.setups import OURS, SETUPS
from bench.shapes import SHAPES
from tools.traffic import gpus, model, predict, tables

H200 = gpus.GPUS["H200"]
BF16, FP32 = torch.bfloat16, torch.float32
ROW = {"optimizer": "AdamW", "source": "fused_optim", "backend": "cuda", "dtype": "bf16"}
ROW |= {"shapes": "one-16M", "ms": 0.2}
MACHINE = {"gpu": "NVIDIA H200", "multiprocessors": 132, "l2_bytes": 1 << 30}


def per(op: str, *names, clip: bool = False, **flags) -> float | None:
    """Bytes per parameter of a step that these arguments of `kind_of` name."""
    kind = traffic.kind_of(op, *names, **flags)
    moved = traffic.moved(kind)
    return moved + traffic.clip_bytes(kind) if clip else moved


@pytest.mark.parametrize(
    ("dtype", "mode", "state", "expected"),
    [
        (FP32, "none", FP32, 28),
        (BF16, "nearest", FP32, 22),
        (BF16, "split", FP32, 26),
        (BF16, "split", BF16, 18),
        (BF16, "stochastic", BF16, 14),
    ],
)
def test_adamw_moves_what_it_must(dtype, mode: str, state, expected: int) -> None:
    assert per("adamw", dtype, dtype, mode, state) == expected


@pytest.mark.parametrize(
    ("mode", "scale_parameter", "expected"),
    [
        ("stochastic", False, 10),
        ("stochastic", True, 12),
        ("split", False, 14),
        ("split", True, 18),
    ],
)
def test_adafactor_moves_what_it_must(mode: str, scale_parameter: bool, expected: int) -> None:
    flags = {"scale_parameter": scale_parameter}
    assert per("adafactor", BF16, BF16, mode, **flags) == expected


def test_flags_add_their_bytes() -> None:
    assert per("adamw", "float32", amsgrad=True) == 28 + 8
    assert per("adamw", "bfloat16") == 26  # split is its default
    assert per("adamw", "float16") == 2 + 2 * 2 + 2 * 4 + 2 * 8
    assert per("adamw", "bfloat16", "float32", "nearest") == 22 + 2
    assert per("adamw", "float32", clip=True) == 28 + 4
    assert per("adafactor", "float32") == 3 * 4 + 8
    assert per("adafactor", "float32", beta1=True, state_dtype="bfloat16") == 20 + 4
    assert per("adafactor", "float32", clip=True) == 20


def test_what_was_not_counted_is_none() -> None:
    assert per("adamw", "float64") is None
    assert per("adamw", "bfloat16", "float16") is None
    with pytest.raises(ValueError, match="'sgd'"):
        traffic.launches("sgd")


def test_launches() -> None:
    assert traffic.launches("adamw") == 1
    assert traffic.launches("adamw", clip=True) == 3
    assert traffic.launches("adafactor") == traffic.launches("adafactor", clip=True) <= 5


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format 0"):
        traffic.counts(tmp_path / "old.json")


def test_adamw_takes_as_long_as_its_bytes() -> None:
    made = predict.predict(predict.own_setups()["AdamW", "fp32"], SHAPES["one-16M"], H200)
    bytes_moved = 28 * 4096 * 4096
    expected = bytes_moved / (H200.copy_gb_per_s * 1e6) + gpus.LAUNCH_US / 1e3
    assert made.ms == pytest.approx(expected)
    assert made.dram_bytes == made.counted_bytes == 28
    clipped = predict.predict(
        predict.own_setups()["AdamW clipped", "fp32"], SHAPES["one-16M"], H200
    )
    assert clipped.counted_bytes == 32
    assert clipped.launches == 3


def test_l2_saves_adafactor_bytes() -> None:
    """8 MiB of gradients fit an H200's L2 with their parameters, 512 MiB don't."""
    setup = predict.own_setups()["Adafactor T5 stochastic", "bf16"]
    small, large = (predict.predict(setup, [(n, n)], H200) for n in (2048, 16384))
    assert (small.counted_bytes, large.counted_bytes) == (10, 10)
    assert small.dram_bytes == 6
    assert 9 < large.dram_bytes <= 10


def test_every_setup_was_counted() -> None:
    for setup in predict.own_setups().values():
        made = predict.predict(setup, [(256, 256), (300, 500), (100,), (200_000,)], H200)
        assert 0 < made.dram_bytes <= made.counted_bytes


def test_setups_are_those_that_are_measured() -> None:
    """A row of a result file finds its prediction whatever of ours it measured."""
    own = [each for each in SETUPS.values() if each.source == OURS]
    assert predict.own_setups().keys() == {
        (each.name, dtype) for each in own for dtype in each.dtypes
    }
    assert set(predict.SHOWN) <= predict.own_setups().keys()


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("AdamWeightDecay", "fp32", 28),
        ("AdamWeightDecay", "bf16", 26),
        ("torch_compat.AdamW amsgrad", "fp32", 28 + 8),
        ("torch_compat.AdamW amsgrad", "bf16", 14 + 4),
        ("torch_compat.AdamW nearest", "bf16", 14),
        ("torch_compat.AdamW clipped", "bf16", 14 + 2),
        ("torch_compat.Adafactor", "fp32", 3 * 4 + 8 + 4),  # its mean square reads parameters
        ("torch_compat.Adafactor", "bf16", 12),
        ("Adafactor beta1 bf16-moments", "bf16", 18 + 4),
    ],
)
def test_options_count_in_predictions(name: str, dtype: str, expected: int) -> None:
    made = predict.predict(predict.own_setups()[name, dtype], [(4096, 4096)], H200)
    assert made.counted_bytes == expected


def test_every_gpu_says_where_its_copy_is_from() -> None:
    assert all(0.85 < g.copy_gb_per_s / g.datasheet_gb_per_s < 0.95 for g in gpus.GPUS.values())
    seen = {g.name for g in gpus.GPUS.values() if "seen" in g.copy_source}
    assert seen == set(gpus.SEEN_COPIES)


def result_file(path: Path, rows: list, copy: dict | None = None) -> Path:
    path.write_text(json.dumps({"machine": MACHINE, "copy": copy, "rows": rows}))
    return path


def test_measured_rows_stand_beside_predicted_ones(tmp_path: Path) -> None:
    copy = {"gb_per_s": 2000.0}
    found = predict.compare(result_file(tmp_path / "r.json", [ROW], copy))
    expected = 26 * 4096 * 4096 / 2e9 + gpus.LAUNCH_US / 1e3
    assert list(found["predicted ms"]) == pytest.approx([expected])
    assert list(found["measured/predicted"]) == pytest.approx([0.2 / expected])


def test_the_machines_own_cache_counts(tmp_path: Path) -> None:
    row = ROW | {"optimizer": "Adafactor T5 stochastic", "shapes": "gpt2-124M"}
    found = predict.compare(result_file(tmp_path / "r.json", [row]))
    setup = predict.own_setups()["Adafactor T5 stochastic", "bf16"]
    assert found["predicted ms"].item() < predict.predict(setup, SHAPES["gpt2-124M"], H200).ms


def test_what_can_not_be_predicted_says_why(tmp_path: Path, capsys) -> None:
    rows = [ROW | {"optimizer": "AdamW sideways"}, ROW | {"shapes": "none"}]
    rows += [ROW | {"backend": "eager"}, ROW | {"source": "torch", "backend": None}]
    path = result_file(tmp_path / "r.json", rows)
    assert list(predict.compare(path)["why not"]) == ["no such setup", "no such shapes"]
    model.main(["--compare", str(path)])
    assert "no such setup" in capsys.readouterr().out


def test_a_file_without_measurements_says_so(tmp_path: Path, capsys) -> None:
    model.main(["--compare", str(result_file(tmp_path / "r.json", []))])
    assert "no measured rows" in capsys.readouterr().out


def test_predictions_are_labelled(tmp_path: Path, capsys) -> None:
    path = tmp_path / "predicted.json"
    model.main(["--gpus", "H200", "--shapes", "one-16M", "--json", str(path)])
    assert "predicted, not measured" in capsys.readouterr().out
    data = json.loads(path.read_text())
    assert data["predicted"] is True
    assert data["inputs"]["l2_share"] == gpus.L2_SHARE
    assert len(data["rows"]) == len(predict.SHOWN)


def test_setups_are_chosen_by_name(tmp_path: Path, capsys) -> None:
    path = tmp_path / "predicted.json"
    words = ["--gpus", "H200", "--shapes", "one-16M", "--json", str(path)]
    model.main([*words, "--only", "torch_compat.Adafactor,kahan bf16"])
    rows = json.loads(path.read_text())["rows"]
    assert {row["setup"] for row in rows} == {"torch_compat.Adafactor", "AdamW kahan bf16-moments"}
    with pytest.raises(SystemExit):
        model.main([*words, "--only", "sideways"])
    assert "--only sideways: no setup" in capsys.readouterr().err


def test_setups_that_move_the_same_share_a_row() -> None:
    page = tables.PAGE.read_text()
    lists = len(tables.DOCUMENTED)
    assert page.count("| AdamW, AdamWeightDecay | bf16 | 26.00 | 1 |") == lists
    assert "**t5-base**: 257 tensors, 222,903,552 parameters" in page


def test_the_page_shows_the_committed_counts() -> None:
    page = tables.PAGE.read_text()
    assert pages.filled(page, tables.TABLES) == page
