"""The committed counts, the times predicted from them, and the page that shows both."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import bench_package  # noqa: F401
import pytest

pytest.importorskip("pandas")
pytest.importorskip("rich")

import made_up_results as made_up
import torch

import fused_optim
from bench import traffic
from bench.setups import OURS, SETUPS
from bench.shapes import SHAPES
from bench.traffic import Kind
from tools.traffic import model

H200 = model.GPUS["H200"]
BF16, FP32 = "bfloat16", "float32"
MOMENT = 2 * 260 / 256  # bytes of a moment in 8 bits that is read and written
PAGE = Path(__file__).resolve().parents[2] / "docs" / "internals" / "traffic_model.md"


def per(op: str, *names, clip: bool = False, **flags) -> float | None:
    """Bytes per parameter of a step of such a kind."""
    kind = Kind(op, *names, **flags)
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
        (BF16, "stochastic", "uint8", 6 + 2 * MOMENT),
        (BF16, "split", "uint8", 10 + 2 * MOMENT),
        (FP32, "none", "uint8", 12 + 2 * MOMENT),
    ],
)
def test_adamw_moves_what_it_must(dtype, mode: str, state, expected: float) -> None:
    assert per("adamw", dtype, dtype, mode, state) == expected


def test_moments_in_8_bits_are_read_and_written_once() -> None:
    """Both in 2.03 bytes, each way, scales included; a step of them is what was counted."""
    kept = {"low_precision": "stochastic", "state_dtype": "int8"}
    param = torch.zeros(64, 64, dtype=torch.bfloat16)
    found = traffic.kind_of(fused_optim.AdamW([param], **kept), param.dtype)
    assert found == Kind("adamw", BF16, BF16, "stochastic", "uint8")
    streams = traffic.passes(found)["step"]
    for way in (0, 1, 2):  # loaded, stored, touched
        assert sum(streams[name][way] for name in ("exp_avg", "exp_avg_sq")) == MOMENT < 2.04
    assert traffic.rows()[found]["launches"] == 1
    assert per("adamw", state_dtype="uint8", amsgrad=True) == 12 + 3 * MOMENT
    assert per("lion", state_dtype="uint8") is None
    page = (PAGE.parents[1] / "eight_bit.md").read_text()
    for dtype, mode in ((BF16, "stochastic"), (BF16, "split"), (FP32, "none")):
        coded, plain = (per("adamw", dtype, dtype, mode, state) for state in ("uint8", FP32))
        assert f"{coded:.2f}" in page and f"instead of {plain:g}" in page


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
    assert per("adafactor", BF16, BF16, mode, None, **flags) == expected


def test_flags_add_their_bytes() -> None:
    assert per("adamw", amsgrad=True) == 28 + 8
    assert per("lion") == 20
    assert per("adamw", "float16", "float16", "master") == 2 + 2 * 2 + 2 * 4 + 2 * 8
    assert per("adamw", BF16, FP32, "nearest") == 22 + 2
    assert per("adamw", clip=True) == 28 + 4
    assert per("adafactor", state_dtype=None) == 3 * 4 + 8
    assert per("adafactor", beta1=True, state_dtype=BF16) == 20 + 4
    assert per("adafactor", state_dtype=None, clip=True) == 20


def test_what_was_not_counted_is_none() -> None:
    assert per("adamw", "float64") is None
    assert per("adamw", BF16, "float16") is None
    with pytest.raises(ValueError, match="'sgd'"):
        traffic.counted_launches("sgd")


def test_launches() -> None:
    assert traffic.counted_launches("adamw") == 1
    assert traffic.counted_launches("adamw", clip=True) == 3
    assert (
        traffic.counted_launches("adafactor")
        == traffic.counted_launches("adafactor", clip=True)
        <= 5
    )


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format 0"):
        traffic.counts(tmp_path / "old.json")


def predicted(name: str, dtype: str, shapes=((4096, 4096),), gpu=H200) -> dict:
    return model.predict(model.own_steps()[name, dtype], list(shapes), gpu)


def test_adamw_takes_as_long_as_its_bytes() -> None:
    made = predicted("AdamW", "fp32")
    expected = 28 * 4096 * 4096 / (H200.copy_gb_per_s * 1e6) + model.LAUNCH_US / 1e3
    assert made["predicted ms"] == pytest.approx(expected)
    assert made["memory B/param"] == made["counted B/param"] == 28
    clipped = predicted("AdamW clipped", "fp32")
    assert (clipped["counted B/param"], clipped["memory B/param"]) == (32, 32)
    assert clipped["launches"] == 3


def test_l2_saves_adafactor_bytes() -> None:
    """8 MiB of gradients fit an H200's L2 with their parameters, 512 MiB don't."""
    small, large = (predicted("Adafactor T5 stochastic", "bf16", [(n, n)]) for n in (2048, 16384))
    assert (small["counted B/param"], large["counted B/param"]) == (10, 10)
    assert small["memory B/param"] == 6
    assert 9 < large["memory B/param"] <= 10


def test_every_setup_was_counted() -> None:
    for name, dtype in model.own_steps():
        made = predicted(name, dtype, [(256, 256), (300, 500), (100,), (200_000,)])
        assert 0 < made["memory B/param"] <= made["counted B/param"]


def test_setups_are_those_that_are_measured() -> None:
    """A row of a result file finds its prediction whatever of ours it measured."""
    own = [each for each in SETUPS.values() if each.source == OURS]
    assert set(model.own_steps()) == {(each.name, dtype) for each in own for dtype in each.dtypes}


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
    assert predicted(name, dtype)["counted B/param"] == expected


def result_file(path: Path, *rows) -> Path:
    results = made_up.results()
    results.machine.l2_bytes, results.machine.multiprocessors = 1 << 30, 132
    results.rows = list(rows)
    results.save(path)
    return path


def test_measured_rows_stand_beside_predicted_ones(tmp_path: Path) -> None:
    row = made_up.row("AdamW", "one-16M", "bf16")
    found = model.compare(result_file(tmp_path / "r.json", row))
    expected = 26 * 4096 * 4096 / (1e6 * made_up.COPY) + model.LAUNCH_US / 1e3
    assert list(found["predicted ms"]) == pytest.approx([expected])
    assert list(found["measured/predicted"]) == pytest.approx([row.ms / expected])


def test_the_machines_own_cache_counts(tmp_path: Path) -> None:
    row = made_up.row("Adafactor T5 stochastic", "gpt2-124M", "bf16")
    found = model.compare(result_file(tmp_path / "r.json", row))
    gpu = H200._replace(copy_gb_per_s=made_up.COPY)
    smaller = predicted("Adafactor T5 stochastic", "bf16", SHAPES["gpt2-124M"], gpu)
    assert found["predicted ms"].item() < smaller["predicted ms"]


def test_what_can_not_be_predicted_is_shown_as_measured(tmp_path: Path, capsys) -> None:
    rows = [
        made_up.row(name, "one-16M", "bf16") for name in ("AdamW", "AdamW", "torch AdamW fused")
    ]
    rows[0].optimizer = "AdamW sideways"
    rows.append(dataclasses.replace(rows[1], backend="eager"))
    rows[1].shapes = "none"
    path = result_file(tmp_path / "r.json", *rows)
    assert list(model.compare(path)["predicted ms"].isna()) == [True, True]
    model.main(["--compare", str(path)])
    assert "AdamW sideways" in capsys.readouterr().out


def test_a_file_without_measurements_says_so(tmp_path: Path, capsys) -> None:
    model.main(["--compare", str(result_file(tmp_path / "r.json"))])
    assert "no measured rows" in capsys.readouterr().out


def test_predictions_are_labelled_and_chosen_by_name(capsys) -> None:
    words = ["--gpus", "H200", "--shapes", "one-16M"]
    model.main(words)
    printed = capsys.readouterr().out
    assert "predicted, not measured" in printed and "4 us a launch: assumed" in printed
    model.main([*words, "--only", "torch_compat.Adafactor,kahan bf16"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "one-16M" in line]
    assert {re.split(r"  +", line)[1] for line in lines} == {
        *("torch_compat.Adafactor", "AdamW kahan bf16-moments")
    }
    with pytest.raises(SystemExit):
        model.main([*words, "--only", "sideways"])
    assert "--only sideways: no setup" in capsys.readouterr().err


def test_the_page_says_what_the_model_says() -> None:
    """What is left of 10 bytes where passes walk back and forth, on an H200."""
    text = PAGE.read_text()
    for shape, rounded in (((4096, 8192), "8.1"), ((8192, 16384), "9.6")):
        left = predicted("Adafactor T5 stochastic", "bf16", [shape])["memory B/param"]
        assert f"{left:.1f}" == rounded and rounded in text
    assert f"{model.LAUNCH_US:g} us a launch" in text and f"{100 * model.L2_SHARE:.0f} %" in text
