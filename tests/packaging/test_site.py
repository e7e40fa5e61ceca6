"""The site: it builds without a warning, and its reference has every public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fused_optim

for package in ("mkdocs", "material", "mkdocstrings_handlers.python", "latex2mathml"):
    pytest.importorskip(package)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_on_the_site(site: Path) -> None:
    for page in ROOT.glob("docs/**/*.md"):
        assert (site / page.relative_to(ROOT / "docs")).with_suffix(".html").exists(), page


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    reference = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    names = set(fused_optim.__all__) - {"__version__"}
    names |= {f"torch_compat.{name}" for name in fused_optim.torch_compat.__all__}
    documented = set(re.findall(r'id="fused_optim\.(?:schedules\.)?([\w.]+)"', reference))
    assert names <= documented | {"schedules"}


def test_formulas_are_drawn_and_examples_are_code(site: Path) -> None:
    page = (site / "api" / "optimizers.html").read_text()
    assert page.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"') >= 5
    for left_over in (".. math", ":math:", "Example:\n", "\\frac"):
        assert left_over not in re.sub(r"<annotation.*?</annotation>", "", page)


def test_links_out_of_docs_lead_to_files_on_the_site(site: Path) -> None:
    """What pages link to in the repository lies on the site, and the page's link leads there."""
    page = (site / "offloading.html").read_text()
    (target,) = re.findall(r'href="([^"]*examples/offload\.py)"', page)
    assert (site / target).read_text() == (ROOT / "examples" / "offload.py").read_text()


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text()
        )
        assert fetched == [], page
