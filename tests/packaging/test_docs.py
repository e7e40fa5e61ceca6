"""What README and docs say, against what is there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import bench_package  # noqa: F401
import precision_page
import pytest
import written_pages

pytest.importorskip("pandas")

import adafactor_page
import backward_page
import eight_bit_page
import messages_page
import offloading_page
import readme_page
import scaling_page
import schedule_pictures
import support_page

from bench import results
from fused_optim import SchedulerType
from fused_optim.backends import dispatch

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text()
FP32_DEFAULT = ("fp32", "default")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_figures_of_steps_in_backward_passes_are_those_measured() -> None:
    page = backward_page.PAGE.read_text()
    assert written_pages.filled(page, backward_page.TABLES) == page
    rows = json.loads(backward_page.RESULTS.read_text())["rows"]
    assert len(rows) == 12
    for row in rows:
        gradients, activations = backward_page.bytes_of(row["dtype"])
        assert row["plain_peak_bytes"] >= gradients
        one = gradients // backward_page.LAYERS
        assert row["peak_bytes"] <= row["bucket_bytes"] + 2 * one + activations < gradients + one


def test_figures_are_those_of_the_committed_results() -> None:
    found = results.load(readme_page.CPU_RESULTS)
    assert readme_page.cpu_table(found) in BENCHMARKS
    assert written_pages.filled(BENCHMARKS, readme_page.TABLES) == BENCHMARKS
    assert written_pages.filled(README, readme_page.README_TABLES) == README


def test_the_readme_shows_every_fused_baseline_and_its_worst_ratio() -> None:
    """But for float32 pairs of other semantics, which say what those of equal semantics say."""
    for machine, path in readme_page.MACHINES.items():
        found = results.load(path).ratios
        fused = [r for r in found if "fused" in r.baseline and (r.dtype, r.kind) != FP32_DEFAULT]
        assert fused, machine
        for ratio in fused:
            (row,) = (
                line
                for line in README.splitlines()
                if line.startswith(f"| `{ratio.ours}` | {ratio.baseline} | {ratio.dtype} |")
            )
            ranges = re.findall(r"([\d.]+) \([^)]*\) to ([\d.]+)", row)
            assert any(
                float(low) - 5e-4 <= ratio.ratio <= float(high) + 5e-3 for low, high in ranges
            )


def words(text: str) -> int:
    """Return the number of words, those of tables and code included."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def test_the_readme_is_one_screen_and_begins_with_an_example() -> None:
    before, code = README.split("```python\n")[:2]
    assert words(before) <= 150
    example = code.split("```")[0]
    assert len(example.strip().splitlines()) <= 15
    for part in ("bfloat16", "param_groups_weight_decay", "schedule"):
        assert part in example
    assert 400 < words(README) <= 700


def test_the_benchmarks_say_of_every_cpu_goal_whether_it_was_met() -> None:
    goals = [r for r in results.load(readme_page.CPU_RESULTS).ratios if r.goal is not None]
    assert len(goals) == 5
    for ratio in goals:
        (row,) = (
            line
            for line in BENCHMARKS.splitlines()
            if line.startswith(
                f"| `{ratio.ours}` | {ratio.baseline} | {ratio.dtype} | {ratio.shapes} |"
            )
        )
        verdict = "met" if ratio.ratio >= ratio.goal else "missed"
        assert row.endswith(f"| {ratio.goal:g}, {verdict} |")


def test_times_and_ratio_of_every_row_agree_and_the_worst_are_among_them() -> None:
    found = results.load(readme_page.CPU_RESULTS)
    each = r"\| `(.+?)` \| (.+?) \| (\w+) \| (\S+) \| ([\d.,]+) ms \| ([\d.,]+) ms \| ([\d.]+)"
    shown = {}
    for ours, baseline, dtype, shapes, *figures in re.findall(each, readme_page.cpu_table(found)):
        before, after, ratio = (float(figure.replace(",", "")) for figure in figures)
        assert before / after == pytest.approx(ratio, rel=0.01)
        shown[ours, baseline, shapes, dtype] = ratio
    for ours, dtype in {(ratio.ours, ratio.dtype) for ratio in found.ratios}:
        measured = [r for r in found.ratios if (r.ours, r.dtype) == (ours, dtype)]
        assert min(measured, key=lambda r: r.ratio).key in shown
    assert shown["torch_compat.AdamW", "torch AdamW fused", "gpt2-30M", "bf16"]


def test_what_adafactor_refuses_is_what_the_page_says() -> None:
    page = adafactor_page.PAGE.read_text()
    assert written_pages.filled(page, adafactor_page.TABLES) == page
    assert len(adafactor_page.REFUSED) >= 8


@pytest.mark.parametrize("name", schedule_pictures.PICTURES)
def test_pictures_of_schedules_are_what_the_schedules_do(name: str) -> None:
    committed = (schedule_pictures.FOLDER / f"{name}.svg").read_text()
    assert committed == schedule_pictures.drawn(name)
    assert f"images/schedules/{name}.svg" in (ROOT / "docs" / "schedules.md").read_text()


def test_every_schedule_has_a_picture() -> None:
    names = {schedule.value for schedule in SchedulerType} - {"cosine_warmup_with_min_lr"}
    assert names | {"adafactor"} == schedule_pictures.PICTURES.keys()


def test_the_page_of_messages_is_what_the_code_says() -> None:
    page = messages_page.PAGE.read_text()
    assert written_pages.filled(page, messages_page.TABLES) == page


def test_troubleshooting_quotes_messages_of_the_code() -> None:
    """Every heading's words are those of one message, in their order."""
    quoted = re.findall(
        r"^### `+(.+?)`+$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE
    )
    assert len(quoted) >= 20
    texts = messages_page.texts()
    for heading in quoted:
        pieces = [re.escape(piece.strip()) for piece in heading.split("…") if piece.strip(" :,;(")]
        pattern = re.compile(".*?".join(pieces), re.DOTALL)
        assert any(pattern.search(text) for text in texts), heading


def test_the_support_page_has_the_stages_that_gpus_ran() -> None:
    page = support_page.PAGE.read_text()
    assert written_pages.filled(page, support_page.TABLES) == page
    assert page.count("| passed |") >= 6


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_of_the_benchmarks_exist_with_their_options(page: Path) -> None:
    for module, words in re.findall(
        r"python -m ((?:bench|tools)[\w.]*)([^`\n#]*)", page.read_text()
    ):
        place = ROOT.joinpath(*module.split("."))
        sources = [place.with_suffix(".py")]
        if place.is_dir():
            sources = [place / name for name in ("__main__.py", "cli.py")]
        text = "".join(source.read_text() for source in sources if source.exists())
        assert text, module
        for option in re.findall(r"--[a-z-]+", words):
            assert f'"{option}"' in text, (module, option)


@pytest.mark.parametrize(
    ("command", "page", "block"),
    [
        (readme_page, "README", "speed"),
        (readme_page, "BENCHMARKS", "cpu"),
        (adafactor_page, "PAGE", "refused"),
        (backward_page, "PAGE", "in_backward"),
        (precision_page, "PAGE", "training"),
        (scaling_page, "PAGE", "memory"),
        (support_page, "PAGE", "gpu"),
        (eight_bit_page, "PAGE", "codes"),
        (offloading_page, "PAGE", "costs"),
        (messages_page, "PAGE", "messages"),
    ],
    ids=[
        *("readme", "benchmarks", "adafactor", "in_backward"),
        *("precision", "scaling", "support", "8 bits", "offloading", "messages"),
    ],
)
def test_pages_are_rewritten_when_asked_to(
    command: ModuleType, page: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale figure is replaced; ``--help`` replaces nothing."""
    text = getattr(command, page).read_text()
    figures = rf"(<!-- {block}:begin -->\n).*?(<!-- {block}:end)"
    stale = re.sub(figures, r"\1old\n\2", text, flags=re.DOTALL)
    copy = tmp_path / "page.md"
    copy.write_text(stale)
    monkeypatch.setattr(command, page, copy)
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    assert copy.read_text() == stale != text
    command.main([])
    assert copy.read_text() == text


def test_every_environment_variable_is_documented() -> None:
    sources = [*ROOT.glob("fused_optim/**/*.py"), *ROOT.glob("triton_kernels/*.py")]
    sources += [ROOT / "setup.py"]
    names = {n for p in sources for n in re.findall(r"\bFUSED_OPTIM_[A-Z_]+\b", p.read_text())}
    macros = {"FUSED_OPTIM_ARCHITECTURES", "FUSED_OPTIM_HOST"}  # of the C++ preprocessor
    assert dispatch.ENVIRONMENT_VARIABLE in names
    page = (ROOT / "docs" / "installing.md").read_text()
    assert {name for name in names - macros if f"| `{name}` |" not in page} == set()
