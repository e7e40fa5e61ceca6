"""The pages' tables of bytes per parameter, against the state that optimizers really keep."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import fused_optim
from fused_optim import torch_compat

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "choosing.md")
PRECISION = ROOT / "docs" / "precision.md"
CLASSES = {
    "torch.optim.AdamW": torch.optim.AdamW,
    "torch_compat.AdamW": torch_compat.AdamW,
    "AdamW": fused_optim.AdamW,
    "Adafactor": fused_optim.Adafactor,
    "Lion": fused_optim.Lion,
}
KEEPS = {
    "nearest": "no",
    "stochastic": "as float32 does, on average",
    "kahan": "from {} of the weight up",
    "split": "as float32 does",
    "master": "as float32 does",
}
DTYPES = {"None": None, "torch.bfloat16": torch.bfloat16, "torch.float32": torch.float32}
DTYPES['"int8"'] = "int8"


def cells(page: Path, name: str) -> list[list[str]]:
    block = page.read_text().split(f"<!-- {name}:begin -->")[1].split(f"<!-- {name}:end -->")[0]
    lines = block.strip().splitlines()[2:]
    return [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines]


def table() -> list[list[str]]:
    """Return rows of optimizer, mode, state dtype, bytes and what is kept, each of them once."""
    return [list(row) for row in dict.fromkeys(tuple(r) for p in PAGES for r in cells(p, "bytes"))]


def bytes_per_parameter(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> float:
    state = (v for v in optimizer.state[param].values() if isinstance(v, torch.Tensor))
    total = sum(t.numel() * t.element_size() for t in (param, *state))
    return total / param.numel()


def test_both_pages_have_a_table() -> None:
    short, long = (cells(page, "bytes") for page in PAGES)
    assert 5 <= len(short) < len(long)
    assert all(row in long for row in short)


@pytest.mark.parametrize(
    ("name", "mode", "dtype", "expected"), [row[:4] for row in table()], ids=str
)
def test_pages_count_right(name: str, mode: str, dtype: str, expected: str) -> None:
    cls, beta1, default = re.fullmatch(r"([\w.]+)(\(beta1=0\.9\))?`?( \(default\))?", name).groups()
    kwargs = {"beta1": 0.9} if beta1 else {}
    if mode and not default:
        kwargs |= {"low_precision": mode, "state_dtype": DTYPES[dtype]}
    param = torch.nn.Parameter(torch.ones(256, 256, dtype=torch.bfloat16))
    param.grad = torch.ones_like(param)
    optimizer = CLASSES[cls](params=[param], **kwargs)
    optimizer.step()
    found = bytes_per_parameter(optimizer, param)
    assert float(expected) <= found < float(expected) + 0.1
    if dtype == '"int8"':
        weights = 4 if mode == "split" else 2
        assert found - weights <= 2.1  # both moments, scales included


DEFAULTS = [row[:3] for row in table() if row[0].endswith("(default)")]


@pytest.mark.parametrize(("name", "mode", "dtype"), DEFAULTS, ids=str)
def test_pages_name_the_defaults(name: str, mode: str, dtype: str) -> None:
    param = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    optimizer = CLASSES[name.split("`")[0]]([param])
    group = optimizer.settings(optimizer.param_groups[0])
    shown = "split" if group["low_precision"] == "auto" else group["low_precision"]
    assert (shown, group["state_dtype"]) == (mode, DTYPES[dtype])


def test_pages_say_how_small_an_update_is_kept() -> None:
    """In the words of docs/precision.md, whose table `bench.kept_updates` measures."""
    measured = {row[0]: row[1:] for row in cells(PRECISION, "kept")}
    limit = measured["bfloat16, `kahan"][0].split()[1].strip("()")
    for name, mode, *_, keeps in table():
        assert keeps == KEEPS[mode or "nearest"].format(limit), name
