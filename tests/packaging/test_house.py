"""The house: which room may import which, and how large its pieces are."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fused_optim
from fused_optim.plan.owner import Owner

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("optimizers", "schedules", "plan", "backends", "precision", "distributed", "errors", "ops")
"""The rooms of the package from top to bottom; a module imports from its own and from below."""

LAZY = {"fused_optim._C", "fused_optim._cpu", "fused_optim.triton_kernels"}
"""What may be imported within a function: compiled libraries, and what needs Triton."""


def modules() -> dict[str, Path]:
    """The modules of the package, bench and tools by their dotted names, as they are imported."""
    found = {}
    for top in ("fused_optim", "bench", "tools", "triton_kernels"):
        for path in (ROOT / top).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if top == "triton_kernels":
                name = f"fused_optim.{name}"
            found[name] = path
    return found


MODULES = modules()


def imported(name: str, node: ast.AST) -> set[str]:
    """What an import statement of a module names, resolved to modules of ours."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names} & MODULES.keys()
    if not isinstance(node, ast.ImportFrom):
        return set()
    base = node.module or ""
    if node.level:
        package = name.split(".")
        is_package = MODULES[name].name == "__init__.py"
        package = package[: len(package) - node.level + is_package]
        base = ".".join([*package, base] if base else package)
    names = {f"{base}.{alias.name}" for alias in node.names}
    return names & (MODULES.keys() | LAZY) or {base} & MODULES.keys()


def imports_of(name: str) -> set[str]:
    tree = ast.parse(MODULES[name].read_text())
    return {found for node in ast.walk(tree) for found in imported(name, node)} - {name}


GRAPH = {name: imports_of(name) for name in MODULES}


def cycles() -> Iterator[list[str]]:
    """Yield the import cycles that a walk meets. A package that holds the module makes none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> Iterator[list[str]]:
        if name in path:
            yield [*path[path.index(name) :], name]
        elif name not in done:
            for other in sorted(GRAPH.get(name, ())):
                if not name.startswith(f"{other}."):
                    yield from walk(other, [*path, name])
            done.add(name)

    for name in sorted(GRAPH):
        yield from walk(name, [])


def test_imports_go_round_in_no_cycle() -> None:
    assert list(cycles()) == []


def room(name: str) -> int | None:
    parts = name.split(".")
    if parts[0] != "fused_optim" or len(parts) < 2:
        return None
    of = "backends" if parts[1] == "triton_kernels" else parts[1]
    return ROOMS.index(of) if of in ROOMS else None


@pytest.mark.parametrize("name", sorted(n for n in GRAPH if room(n) is not None))
def test_imports_go_down(name: str) -> None:
    upward = [
        other for other in GRAPH[name] if room(other) is not None and room(other) < room(name)
    ]
    assert upward == []


def test_every_module_of_the_package_is_in_a_room_or_an_entrance() -> None:
    outside = {n for n in GRAPH if n.startswith("fused_optim.") and room(n) is None}
    assert outside == {"fused_optim.__main__", "fused_optim._version", "fused_optim.torch_compat"}


@pytest.mark.parametrize("name", sorted(n for n in GRAPH if n.startswith("fused_optim")))
def test_only_what_may_be_missing_is_imported_within_a_function(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    functions = [
        n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    within = {
        found
        for function in functions
        for node in ast.walk(function)
        for found in imported(name, node)
    }
    assert within <= LAZY


def test_the_plan_asks_no_more_of_an_optimizer_than_its_protocol_says() -> None:
    asked = set()
    for path in (ROOT / "fused_optim/plan").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                asked |= {node.attr} if node.value.id == "optimizer" else set()
            if isinstance(node, ast.arg) and node.arg == "optimizer":
                assert ast.unparse(node.annotation) == "Owner", path
    methods = {name for name, value in vars(Owner).items() if inspect.isfunction(value)}
    own = {name for name in methods | set(Owner.__annotations__) if not name.startswith("__")}
    assert asked == own
    for name in asked - {"param_groups", "state", "backend"}:
        assert hasattr(fused_optim.AdamW, name)


def test_the_map_for_contributors_is_the_tree() -> None:
    """Rooms in CONTRIBUTING.md are those here, in order, and the files that it names exist."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    part = text[text.index("## Where things live") : text.index("The other folders:")]
    rows = re.findall(r"^\| `([\w/.]+)`", part, re.MULTILINE)
    rooms = [row.strip("/").removesuffix(".py") for row in rows]
    assert sorted({room.partition("/")[0] for room in rooms} | {"errors"}) == sorted(ROOMS)
    listed = [room for room in rooms if room in ROOMS and room != "schedules"]
    assert listed == [room for room in ROOMS if room in listed]
    named = set(re.findall(r"`(?:fused_optim/)?((?!tests/)[\w/]+\.py)`", part))
    assert len(named) > 20
    known = {str(path.relative_to(ROOT)) for path in MODULES.values()}
    missing = [one for one in named if not any(path.endswith(f"/{one}") for path in known)]
    assert missing == []


LONG_FILES = {
    "fused_optim/optimizers/base.py": (490, "torch's whole contract for optimizers, in one class"),
    "fused_optim/optimizers/tf_compat.py": (370, "the TensorFlow half: a class with its factory"),
    "fused_optim/optimizers/torch_compat.py": (330, "three classes with torch's signatures"),
    "fused_optim/plan/steady.py": (360, "what a steady step compares, beside what it then sends"),
    "fused_optim/schedules/greedy.py": (300, "transformers' GreedyLR with its fifteen options"),
    "triton_kernels/adafactor_statistics.py": (260, "one kernel's four ways of reading a tile"),
    "triton_kernels/adafactor_update.py": (260, "one kernel's four ways of reading a tile"),
}
"""Files that may have more than 250 lines: how many, and why."""

THEIR_SIGNATURES = {"__init__", "create_optimizer", "get_wsd_schedule"}
THEIR_SIGNATURES |= {"get_cosine_with_min_lr_schedule_with_warmup_lr_rate"}
"""Functions with more than 7 positional arguments because those that they replace have them."""


@pytest.mark.parametrize("path", sorted(str(p.relative_to(ROOT)) for p in MODULES.values()))
def test_pieces_are_small(path: str) -> None:
    text = (ROOT / path).read_text()
    assert len(text.splitlines()) <= LONG_FILES.get(path, (250, ""))[0]
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert code_lines(function) <= 50, function.name
            kernel = path.startswith("triton_kernels/")  # Triton passes no structs
            if not kernel and function.name not in THEIR_SIGNATURES:
                arguments = function.args.posonlyargs + function.args.args
                methods = arguments and arguments[0].arg in ("self", "cls")
                assert len(arguments) - bool(methods) <= 7, function.name


def test_what_surrounds_the_package_stays_small() -> None:
    """Libraries do the work in bench and tools: rich, pandas, jinja2, matplotlib, seaborn."""
    around = [path for name, path in MODULES.items() if name.split(".")[0] in ("bench", "tools")]
    assert len(around) > 20
    assert sum(len(path.read_text().splitlines()) for path in around) < 4000


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function but for those of its docstring."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_no_exception_is_left_over() -> None:
    for path in LONG_FILES:
        assert len((ROOT / path).read_text().splitlines()) > 250, path
