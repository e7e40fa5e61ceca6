"""One op vocabulary, one argument order and one set of equation labels in every backend.

Read from the sources, so that backends which can't be imported here are held to it too.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from fused_optim.ops import OPS

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = (ROOT / "docs" / "internals" / "kernel_contract.md").read_text()
BACKENDS = {
    "eager": sorted((ROOT / "fused_optim" / "backends" / "eager").glob("*.py")),
    "triton": sorted((ROOT / "triton_kernels").glob("*.py")),
    "cuda": [ROOT / "fused_optim" / "backends" / name for name in ("cuda.py", "compiled.py")],
}
MATH = {
    "eager": BACKENDS["eager"],
    "triton": BACKENDS["triton"],
    "cuda": sorted((ROOT / "csrc").rglob("*.cu*")),
}


def contract_ops() -> dict[str, list[str]]:
    table = CONTRACT.split("## 1. Ops")[1].split("## 2.")[0]
    return {
        name: [argument.strip() for argument in arguments.split(",")]
        for name, arguments in re.findall(r"^\| `(\w+)\(([^)]*)\)` \|", table, re.MULTILINE)
    }


def exported(paths: list[Path]) -> set[str]:
    for path in paths:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return set(ast.literal_eval(node.value))
    raise AssertionError("no __all__")


def signatures(paths: list[Path]) -> dict[str, list[str]]:
    nodes = [n for p in paths for n in ast.walk(ast.parse(p.read_text()))]
    named = [n for n in nodes if isinstance(n, ast.FunctionDef)]
    arguments = {node.name: [argument.arg for argument in node.args.args] for node in named}
    return {name: [a for a in found if a != "self"] for name, found in arguments.items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_ops_are_those_of_the_contract(backend: str) -> None:
    ops = contract_ops()
    assert set(ops) == set(OPS)
    more = set() if backend == "triton" else {"shard_sums", "shard_update_sum"}
    packs = "eight_bit_updates"
    more |= {"eager": set(), "triton": {"needs", packs}, "cuda": {"needs", "keeps_sums", packs}}[
        backend
    ]
    assert exported(BACKENDS[backend]) == set(ops) | more
    found = signatures(BACKENDS[backend])
    work = "bucket" if backend == "eager" else "tables"
    assert {name: ["work", *found[name][1:]] for name in ops if found[name][0] == work} == ops


@pytest.mark.parametrize("backend", MATH)
def test_every_equation_is_labelled(backend: str) -> None:
    labels = set(re.findall(r"\[([WFL]\d+)\]", CONTRACT))
    counts = {"W": 6, "F": 10, "L": 3}
    assert labels == {f"{name}{i}" for name, n in counts.items() for i in range(1, n + 1)}
    sources = "\n".join(path.read_text() for path in MATH[backend])
    assert labels - set(re.findall(r"\[([WFL]\d+)\]", sources)) == set()
