"""The table of planted faults keeps up with the source, and the tool that plants them works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import planted_faults
import pytest
from planted_faults import ROOT, TABLE, Fault, read_table

FAULTS = read_table(TABLE.read_text())
STEP = """fault: the step count stands still
file: fused_optim/plan/collect.py
tests: optimizers/test_loaded_steps.py::test_loading_leaves_the_dict_alone
"""


def test_every_fault_applies() -> None:
    """All that don't are listed, for whoever changed the source under them."""
    wrong = []
    for fault in FAULTS:
        try:
            text = fault.planted(ROOT)
            if fault.file.endswith(".py"):
                compile(text, fault.file, "exec")
        except (OSError, ValueError, SyntaxError) as error:
            wrong.append(f"{fault.title}: {error}")
    assert not wrong, "\n".join(wrong)


def test_every_fault_names_tests_that_exist() -> None:
    for fault in FAULTS:
        assert fault.tests
        for test in fault.tests:
            file, _, function = test.partition("::")
            assert f"def {function}" in (ROOT / "tests" / file).read_text(), test


def test_titles_are_unique() -> None:
    titles = [f"{fault.file}: {fault.title}" for fault in FAULTS]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("text", ["a = 1\n", "a = 2\na = 2\n"], ids=["gone", "ambiguous"])
def test_an_original_occurs_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "module.py").write_text(text)
    with pytest.raises(ValueError, match="module.py has the original text of 'three'"):
        Fault("three", "module.py", (), "a = 2", "a = 3").planted(tmp_path)


def test_lines_of_a_table() -> None:
    (fault,) = read_table(f"# comment\n\n{STEP}- one\n-   two\n+ three\n+\n")
    assert fault.tests == ("optimizers/test_loaded_steps.py::test_loading_leaves_the_dict_alone",)
    assert (fault.original, fault.faulty) == ("one\n  two", "three\n")
    for wrong in (STEP, f"{STEP}- one\nnote: two", STEP.replace("file", "where") + "- one"):
        with pytest.raises(ValueError, match="not a fault, file, tests"):
            read_table(wrong)


@pytest.mark.long
def test_a_fault_is_killed_or_survives(tmp_path: Path) -> None:
    """End to end on two faults, of which one breaks nothing."""
    table = tmp_path / "table.txt"
    killed = [
        fault for fault in FAULTS if fault.file == "fused_optim/optimizers/state_dicts/loading.py"
    ][0]
    harmless = "- def give_rows(\n+ def give_rows (\n"
    table.write_text(
        f"fault: {killed.title}\nfile: {killed.file}\ntests: {' '.join(killed.tests)}\n"
        f"- {killed.original}\n+ {killed.faulty}\n\n{STEP}{harmless}"
    )
    command = [sys.executable, planted_faults.__file__, "--table", str(table)]
    for words, status, score in (((), 1, "1 of 2"), ((killed.title,), 0, "1 of 1")):
        done = subprocess.run([*command, *words], capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert done.stdout.splitlines()[-1] == f"{score} faults killed"
        assert ("SURVIVED" in done.stdout) == bool(status)
