"""Every example runs on a CPU, and learns."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from processes import needs_gloo, printed_by

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ALONE = {"train_bf16": "torch", "with_trainer": "transformers", "with_accelerate": "accelerate"}
ALONE["with_lightning"] = "pytorch_lightning"
TOGETHER = ("offload", "with_ddp", "with_fsdp2")


def run(folder: Path, name: str, *arguments: str, processes: int = 0) -> list[float]:
    """Run an example, alone or in a group of processes; return the losses that it prints."""
    program = ROOT / "examples" / f"{name}.py"
    printed = printed_by(program, folder, *arguments, count=processes)
    return [float(loss) for loss in re.findall(r"^\w+ \d+: loss ([\d.]+)", printed, re.M)]


def assert_learned(losses: list[float]) -> None:
    assert len(losses) >= 3
    assert losses[-1] < losses[0] / 1.9


def test_every_example_is_run_and_short() -> None:
    assert {path.stem for path in EXAMPLES} == {*ALONE, *TOGETHER}
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) <= 60, path
    demo = ("corpus", "gpt", "optimizers", "show", "train_gpt", "training")
    files = (ROOT / "examples" / "demo" / f"{name}.py" for name in demo)
    assert sum(len(path.read_text().splitlines()) for path in files) <= 600


@pytest.mark.parametrize("name", ALONE)
def test_an_example_learns(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(ALONE[name]) is None:
        pytest.skip(f"needs {ALONE[name]}")
    assert_learned(run(tmp_path, name))


@needs_gloo
@pytest.mark.parametrize("name", ["offload", "with_ddp"])
def test_an_example_learns_on_two_processes(name: str, tmp_path: Path) -> None:
    assert_learned(run(tmp_path, name, processes=2))


@needs_gloo
def test_the_fsdp2_example_resumes_to_the_bit(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        folder.mkdir()
    losses = run(tmp_path, "with_fsdp2", str(whole), processes=2)
    assert_learned(losses)
    first = run(tmp_path, "with_fsdp2", str(resumed), "40", processes=2)
    (resumed / "60").mkdir()  # a save that was killed leaves no metadata
    then = run(tmp_path, "with_fsdp2", str(resumed), processes=2)
    assert first + then == losses
    states = []
    for folder in (whole, resumed):
        dcp_to_torch_save(folder / "60", tmp_path / "one.pt")
        states.append(torch.load(tmp_path / "one.pt", weights_only=False))
    assert_equal(*states)


def assert_equal(actual: object, expected: object) -> None:
    """Equality to the last bit of nested dictionaries of tensors and numbers."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_equal(actual[key], expected[key])
    elif isinstance(expected, torch.Tensor):
        # A remainder's bits are an integer in a bfloat16 tensor, and may be those of a NaN.
        assert actual.dtype == expected.dtype
        assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (actual, expected)))
    else:
        assert actual == expected
