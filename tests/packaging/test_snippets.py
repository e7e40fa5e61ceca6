"""Every block of Python in README and docs, run in the order of its page."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import snippets
import torch
from processes import needs_gloo, printed_by
from snippets import Snippet

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    page
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")))
    if snippets.of(page)
]
# Trainer, accelerate and Lightning warn of themselves, which is no concern of a page.
pytestmark = pytest.mark.filterwarnings("ignore")


def run(snippet: Snippet, page: Path, names: dict[str, object]) -> None:
    """Run a block, and hold what it raises or prints to what the page shows."""
    code = compile("\n" * (snippet.line - 1) + snippet.code, str(page), "exec")
    if snippet.mark.startswith("needs "):
        pytest.importorskip(snippet.mark.removeprefix("needs "))
    if snippet.mark == "gpu" and not torch.cuda.is_available():
        return
    if snippet.mark.startswith("raises "):
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            exec(code, names)
        assert caught.type.__name__ == snippet.mark.removeprefix("raises ")
        assert one_line(snippet.output) in one_line(f"{caught.type.__name__}: {caught.value}")
        assert snippet.output
        return
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    if snippet.mark == "prints":
        assert printed.getvalue() == snippet.output


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def undone() -> Iterator[None]:
    """Take back what Trainer, accelerate and Lightning leave behind."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if "accelerate" in sys.modules:
        state = sys.modules["accelerate"].state
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@pytest.mark.usefixtures("undone")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {"__name__": "page"}
    for snippet in snippets.of(page):
        if snippet.mark != "two processes":
            run(snippet, page, names)


def together(page: Path) -> list[Snippet]:
    return [snippet for snippet in snippets.of(page) if snippet.mark == "two processes"]


@needs_gloo
@pytest.mark.parametrize(
    "page", [page for page in PAGES if together(page)], ids=lambda page: page.name
)
def test_a_page_runs_on_two_processes(page: Path, tmp_path: Path) -> None:
    program = tmp_path / "page.py"
    program.write_text(snippets.program(together(page)))
    printed_by(program, tmp_path, count=2)


def test_no_block_is_overlooked() -> None:
    """Every fence that says Python is one of the blocks, whatever is around it."""
    for page in PAGES:
        fences = re.findall(r"^[ >]*``+ *\{?\.?py", page.read_text(), re.MULTILINE)
        assert len(fences) == len(snippets.of(page)), page


def page_of(tmp_path: Path, text: str) -> Path:
    page = tmp_path / "page.md"
    page.write_text(textwrap.dedent(text))
    return page


def test_what_a_comment_asks_for_is_checked(tmp_path: Path) -> None:
    page = page_of(
        tmp_path,
        """\
        <!--
        ```python
        number = 6
        ```
        -->

        - <!-- prints -->
          in a list:

          <!-- prints -->
          ```python
          print(number * 7)
          ```

          ```
          42
          ```

        <!-- raises KeyError -->
        ```python
        {}["a"]
        ```

        ```text
        KeyError: 'a'
        ```
        """,
    )
    hidden, printing, raising = snippets.of(page)
    assert [s.mark for s in (hidden, printing, raising)] == ["", "prints", "raises KeyError"]
    assert page.read_text().splitlines()[raising.line - 1] == '{}["a"]'
    names: dict[str, object] = {}
    for snippet in (hidden, printing, raising):
        run(snippet, page, names)
    with pytest.raises(AssertionError):
        run(printing, page, {"number": 5})
    with pytest.raises(AssertionError):
        run(Snippet("{}['b']", 1, raising.mark, raising.output), page, {})
    with pytest.raises(AssertionError):
        run(Snippet("1 / 0", 1, raising.mark, raising.output), page, {})
    with pytest.raises(pytest.fail.Exception):
        run(Snippet("pass", 1, raising.mark, raising.output), page, {})


def test_an_unknown_comment_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="skipped"):
        snippets.of(page_of(tmp_path, "<!-- skipped -->\n```python\npass\n```\n"))
