"""Plants faults in a copy of the checkout, one at a time, to see whether the tests notice them.

    python tests/support/planted_faults.py             every fault of planted_faults.txt
    python tests/support/planted_faults.py plan csrc   those whose title or file has such a word

A fault that the tests named beside it let pass has survived: what it breaks has no test. The
checkout is only read; the copy is given its builds of the kernels for the CPU. A test that notices
a fault is run again without it, so that one which fails anyhow ends the run.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_suffix(".txt")
_NOT_COPIED = (".git", ".venv", "build", "dist", "runs", "__pycache__", ".*_cache", ".hypothesis")
_BUILDS = ("build/host", "build/planted")
_LIMIT = 600  # seconds: a fault may make a test wait for ever
# Not `python -m pytest`, which puts the checkout on the path, where it hides what is installed.
_PYTEST = ("-c", "import sys; del sys.path[0]; import pytest; sys.exit(pytest.main())")
_OPTIONS = ("-x", "-q", "--no-header", "--tb=no", "-rfE", "-p", "no:cacheprovider")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One change for the worse.

    Attributes:
        title: what goes wrong.
        file: where, relative to the checkout.
        tests: the files in tests/ that ought to notice.
        original: text that occurs there once.
        faulty: what takes its place.
    """

    title: str
    file: str
    tests: tuple[str, ...]
    original: str
    faulty: str

    def planted(self, root: Path) -> str:
        """Return the text of the file under ``root`` with the fault in it.

        Raises:
            ValueError: the original text is not there, or more than once.
        """
        text = (root / self.file).read_text()
        count = text.count(self.original)
        if count != 1:
            raise ValueError(
                f"{self.file} has the original text of {self.title!r} {count} times, not once; "
                f"bring the table of faults up to date:\n{self.original}"
            )
        return text.replace(self.original, self.faulty)


def read_table(text: str) -> list[Fault]:
    """Return the faults of a table: paragraphs, of which those of comments alone are skipped."""
    paragraphs = (
        [line for line in paragraph.splitlines() if not line.startswith("#")]
        for paragraph in text.strip().split("\n\n")
    )
    return [_parsed(lines) for lines in paragraphs if lines]


def _parsed(lines: list[str]) -> Fault:
    parts: dict[str, list[str]] = {}
    for line in lines:
        key, _, value = line.partition(": ") if line[0] not in "-+" else (line[0], "", line[2:])
        parts.setdefault(key, []).append(value)
    if not {"fault", "file", "tests", "-"} <= set(parts) <= {"fault", "file", "tests", "-", "+"}:
        raise ValueError("not a fault, file, tests, - and + lines:\n" + "\n".join(lines))
    original, faulty = ("\n".join(parts.get(sign, [])) for sign in "-+")
    return Fault(
        parts["fault"][0], parts["file"][0], tuple(parts["tests"][0].split()), original, faulty
    )


class Copy:
    """A copy of the checkout, whose tests run on the copy's package and not on the installed one.

    Attributes:
        root: its folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*_NOT_COPIED, "*.so"))
        for kind in _BUILDS:  # a fault in csrc/ makes builds of other names, which stay in the copy
            (root / kind).mkdir(parents=True)
            for build in (ROOT / kind).glob("*"):
                (root / kind / build.name).symlink_to(build)
        if (ROOT / "build/cpu").is_dir():  # which ninja brings up to date in place
            shutil.copytree(ROOT / "build/cpu", root / "build/cpu")

    def noticed(self, fault: Fault) -> list[str]:
        """Return the tests that fail with a fault planted and not without: the first, or none.

        Raises:
            ValueError: the fault's original text does not occur once.
            RuntimeError: the fault does not compile, or its tests don't run or fail without it.
        """
        place, faulty = self.root / fault.file, fault.planted(self.root)
        sound = place.read_text()
        place.write_text(faulty)
        try:
            if fault.file.endswith(".py"):
                compile(faulty, fault.file, "exec")
            else:
                self._compile(fault)
            failed = self._failures(fault.tests)
        finally:
            place.write_text(sound)
        if failed and self._failures(failed):
            raise RuntimeError(f"{' '.join(failed)} fails without {fault.title!r}, too")
        return failed

    def _failures(self, tests: Sequence[str]) -> list[str]:
        """Return the first of some tests to fail, none, or all where pytest hangs or crashes."""
        site = self.root / "build/site"
        shutil.rmtree(site, ignore_errors=True)
        self._run("setup.py", "-q", "build", "--build-lib", str(site)).check_returncode()
        try:
            done = self._run(*_PYTEST, *_OPTIONS, *(f"tests/{name}" for name in tests))
        except subprocess.TimeoutExpired:
            return list(tests)
        if done.returncode <= 0:  # below it is a signal: a fault may write where it must not
            return list(tests) if done.returncode else []
        failed = re.search(r"^(?:FAILED|ERROR) tests/(.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
        if failed is None:
            raise RuntimeError(f"pytest did not run {tests}:\n{done.stdout}{done.stderr}")
        return [failed[1]]

    def _compile(self, fault: Fault) -> None:
        code = "import sys; sys.path.insert(0, 'tests/support'); import host_module as h; h.path()"
        done = self._run("-c", code)
        if done.returncode != 0:
            raise RuntimeError(f"{fault.title!r} does not compile:\n{done.stderr[-2000:]}")

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = (str(self.root / "build/site"), os.environ.get("PYTHONPATH"))
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONDONTWRITEBYTECODE": "1",  # its stamps can't tell versions of one second apart
            "FUSED_OPTIM_CUDA": "0",
        }
        command = (sys.executable, *arguments)
        return subprocess.run(
            command, cwd=self.root, env=variables, capture_output=True, text=True, timeout=_LIMIT
        )


def report(faults: Sequence[Fault], copy: Copy) -> int:
    """Print what became of each fault and return how many survived."""
    survivors = 0
    for fault in faults:
        start = time.monotonic()
        failed = copy.noticed(fault)
        survivors += not failed
        verdict, how = ("killed", "by") if failed else ("SURVIVED", "despite")
        print(f"{verdict:8} {time.monotonic() - start:5.0f} s  {fault.file}: {fault.title}")
        print(f"{'':18}{how} {' '.join(failed or fault.tests)}", flush=True)
    print(f"{len(faults) - survivors} of {len(faults)} faults killed")
    return survivors


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="parts of titles or files; all faults without")
    parser.add_argument("--table", type=Path, default=TABLE, help="another table of faults")
    given = parser.parse_args()
    faults = [
        fault
        for fault in read_table(given.table.read_text())
        if not given.words or any(word in f"{fault.file}: {fault.title}" for word in given.words)
    ]
    if not faults:
        parser.error(f"no fault has any of {given.words} in its title or file")
    for fault in faults:
        fault.planted(ROOT)  # all of them apply, before the first takes its time
    with tempfile.TemporaryDirectory(prefix="planted-faults-") as folder:
        sys.exit(1 if report(faults, Copy(Path(folder) / "checkout")) else 0)


if __name__ == "__main__":
    main()
