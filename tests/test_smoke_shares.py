"""The smoke test of gpu-check as several processes: what each runs, and what is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import bench_package  # noqa: F401
import pytest

from tools.gpu_check import kernels, shares


@pytest.mark.parametrize("of", [3, 10, 12])
def test_shares_have_every_case_once_and_no_kernel_twice(of: int) -> None:
    parts = [list(kernels.cases(share, of)) for share in range(of)]
    everything = [case for share in parts for case in share]
    assert sorted(everything, key=str) == sorted(kernels.cases(), key=str)
    kinds = [kind for share in parts for kind in {(dtype, mode) for _, dtype, mode, _ in share}]
    assert len(kinds) == len(set(kinds))


def test_shares_are_one_record(tmp_path: Path) -> None:
    """Two processes, as a stage starts them, with time for no case."""
    words = ["--backend", "eager", "--device", "cpu", "--compare", "--seconds", "0"]
    assert shares.run(2, tmp_path / "record.json", words) == 0
    kept = json.loads((tmp_path / "record.json").read_text())
    assert (kept["passed"], kept["failed"]) == (0, 0)
    assert kept["notes"] == ["0 of 64 cases, for want of time", "0 of 62 cases, for want of time"]


def test_a_share_that_fails_or_dies_is_told(tmp_path: Path, capfd) -> None:
    assert shares.run(2, tmp_path / "record.json", ["--backend", "no-such-thing"]) == 2
    assert "no-such-thing" in capfd.readouterr().err
    parts = [tmp_path / name for name in "abc"]
    case = {"test": "AdamW", "text": ["wrong"]}
    for part, failures in zip(parts, ([case], [], None), strict=True):
        if failures is not None:
            counts = {"passed": 2, "failed": len(failures)}
            part.write_text(json.dumps({**counts, "failures": failures, "notes": ["a note"]}))
    record = tmp_path / "record.json"
    found = shares.merged(record, parts, [1, 0, -11])
    assert (found.passed, found.failed, found.notes) == (4, 2, ["a note"])
    assert found.failures[0] == case
    assert found.failures[1]["test"] == "share 2 of 3"
    assert "status -11" in found.failures[1]["text"][0]
    assert shares.merged(record, parts, [None] * 3).failed == 1
