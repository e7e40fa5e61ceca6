"""The command line: ``python -m bench``."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from bench import comparison, results
from bench.display import Display, header
from bench.pairs import PAIRS, Pair
from bench.session import Session
from bench.setups import DTYPES, SETUPS, Setup, named
from bench.shapes import SHAPES, numel
from fused_optim import dispatch

PARTS = ("ratios", "rows", "memory")
"""What a run measures, in this order: what matters most comes first where time is short."""

# The first of each are the quick ones; goals on a GPU are those of the lists up to llama-8b-1of8.
_CPU_SHAPES = ("gpt2-30M", "gpt2-124M", "tiny-1000", "lora-r16", "resnet-101", "vit-b16", "t5-base")
_CUDA_SHAPES = ("llama-8b-2l", "tiny-1000", "t5-base", "lora-r16", "resnet-101", "llama-8b-1of8")
_CUDA_SHAPES += ("gpt2-124M", "vit-b16", "one-16M", "one-256M", "llama-8b-4l", "llama-8b", "one-1G")
_DEFAULT_SHAPES = {
    ("cpu", "quick"): _CPU_SHAPES[:1],
    ("cpu", "default"): _CPU_SHAPES[:4],
    ("cpu", "full"): _CPU_SHAPES,
    ("cuda", "quick"): _CUDA_SHAPES[:3],
    ("cuda", "default"): _CUDA_SHAPES[:-3],
    ("cuda", "full"): _CUDA_SHAPES,
}
_DEFAULT_ROUNDS = {
    ("cpu", "quick"): 5,
    ("cpu", "default"): 9,
    ("cpu", "full"): 21,
    ("cuda", "quick"): 11,
    ("cuda", "default"): 25,
    ("cuda", "full"): 51,
}
_MEMORY_SHAPES = {"cpu": ("gpt2-30M",), "cuda": ("llama-8b-2l", "tiny-1000")}


class Task(NamedTuple):
    """One thing to measure."""

    what: str
    setups: tuple[Setup, ...]
    dtype: str
    measure: Callable[[], None]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures optimizers against each other, in turns, on this machine.",
        epilog="Lists are separated by commas. Exits with 1 where a floor is missed, two "
        "optimizers of equal semantics disagree, or something of this package or torch fails.",
    )
    flag = found.add_argument
    flag("--list", action="store_true", help="list setups, shapes and pairs, and stop")
    flag("--op", type=_names(("adamw", "adafactor")), help="adamw, adafactor")
    flag("--shapes", type=_names(tuple(SHAPES)), help="lists of shapes")
    flag("--dtype", type=_names(tuple(DTYPES)), help="dtypes of parameters and gradients")
    flag("--only", metavar="TEXTS", help="setups and pairs whose names contain one of these")
    flag("--parts", type=_names(PARTS), default=PARTS, help="some of ratios, rows, memory")
    flag("--device", help="cuda or cpu; by default cuda where there is one")
    flag("--backend", choices=dispatch.BACKENDS, help="of this package's optimizers")
    extent = found.add_mutually_exclusive_group()
    extent.add_argument("--quick", dest="extent", action="store_const", const="quick")
    extent.add_argument("--full", dest="extent", action="store_const", const="full")
    found.set_defaults(extent="default")
    flag("--rounds", type=int, help="steps of each optimizer")
    flag("--warm-up", type=float, metavar="SECONDS", help="before each measurement")
    flag("--time-limit", type=float, metavar="SECONDS", help="stop then, and keep what there is")
    flag("--json", type=Path, metavar="FILE", help="write results here, after each measurement")
    flag("--merge", type=Path, metavar="EARLIER", help="keep this file's figures in --json's too")
    flag("--compare", type=Path, metavar="BASE", help="compare with this earlier result file")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure what the command line asks for and return the exit status."""
    found = parser()
    options = found.parse_args(arguments)
    display = Display()
    if options.list:
        _list(display)
        return 0
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if options.rounds is not None and options.rounds < 1:
        found.error(f"--rounds {options.rounds}: at least 1 is needed")
    if options.merge and not options.json:
        found.error("--merge: needs --json, the file to write both into")
    base, earlier = (
        results.load(path) if path else None for path in (options.compare, options.merge)
    )
    try:
        dispatch.check_backend(options.backend or "auto", "adamw_", device)
    except (RuntimeError, ValueError) as error:
        found.error(str(error))
    limit = options.time_limit
    session = Session(
        device=device,
        rounds=options.rounds or _DEFAULT_ROUNDS[device.type, options.extent],
        backend=options.backend,
        json=options.json,
        earlier=earlier,
        deadline=math.inf if limit is None else time.monotonic() + limit,
        warm_up=options.warm_up,
    )
    display.say(header(session.results.machine))
    with contextlib.closing(session):
        _run(session, list(tasks(session, options)), display)
    display.results(session.results)
    if base is not None:
        comparison.show(display, base, session.results)
    for failure in session.failures:
        display.say(f"FAILED  {failure}")
    below = [check.name for check in session.results.checks if not check.above_floor]
    if below:
        display.say(f"below their floors: {'; '.join(below)}")
    return int(bool(below or session.failures))


def tasks(session: Session, options: argparse.Namespace) -> Iterator[Task]:
    """Return what the options ask for, in the order in which it is measured."""
    device = session.device.type
    shapes = options.shapes or _DEFAULT_SHAPES[device, options.extent]
    if "ratios" in options.parts:
        for name in shapes:
            for pair, dtype in _selected_pairs(options):
                case = f"{pair}, {name}, {dtype}"
                setups = (SETUPS[pair.ours], SETUPS[pair.baseline])
                yield Task(case, setups, dtype, _bind(session.measure_pair, pair, name, dtype))
    if "rows" in options.parts:
        for name in shapes:
            for setup, dtype in _selected_setups(options):
                case = f"{setup.name}, {name}, {dtype}"
                yield Task(case, (setup,), dtype, _bind(session.measure_row, setup, name, dtype))
    if "memory" in options.parts:
        for name in options.shapes or _MEMORY_SHAPES[device]:
            for setup, dtype in _selected_setups(options):
                case = f"memory of {setup.name}, {name}, {dtype}"
                yield Task(case, (setup,), dtype, _bind(session.measure_memory, setup, name, dtype))


def _run(session: Session, work: list[Task], display: Display) -> None:
    session.measure_copy()
    with display.progress(len(work)) as advance:
        for index, task in enumerate(work):
            if session.over:
                session.give_up(task.what for task in work[index:])
                break
            advance(task.what)
            if not any([session.why_not(setup, task.dtype) for setup in task.setups]):
                session.attempt(task.what, task.setups, task.measure)


def _selected_pairs(options: argparse.Namespace) -> Iterator[tuple[Pair, str]]:
    for pair in PAIRS:
        if options.op and SETUPS[pair.ours].op not in options.op:
            continue
        if not named(str(pair), options.only):
            continue
        yield from ((pair, d) for d in pair.dtypes if not options.dtype or d in options.dtype)


def _selected_setups(options: argparse.Namespace) -> Iterator[tuple[Setup, str]]:
    for setup in SETUPS.values():
        if options.op and setup.op not in options.op:
            continue
        if not named(setup.name, options.only):
            continue
        wanted = options.dtype or ("fp32", "bf16")
        yield from ((setup, dtype) for dtype in setup.dtypes if dtype in wanted)


def _list(display: Display) -> None:
    setups = [(s.name, s.op, s.source, " ".join(s.dtypes)) for s in SETUPS.values()]
    display.table("setups", ("name", "op", "source", "dtypes"), setups)
    lists = [(name, str(len(s)), f"{numel(s):,}") for name, s in SHAPES.items()]
    display.table("shapes", ("name", "tensors", "parameters"), lists)
    pairs = [(p.ours, p.baseline, p.kind, " ".join(p.dtypes)) for p in PAIRS]
    display.table("pairs", ("ours", "baseline", "kind", "dtypes"), pairs)


def _names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """Return argparse's type of a list of some known names, or of all of them."""

    def parse(text: str) -> tuple[str, ...]:
        names = known if text == "all" else tuple(text.split(","))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"{', '.join(unknown)} unknown; known are {', '.join(known)}, and all"
            )
        return names

    return parse


def _bind(measure: Callable[..., None], *arguments: object) -> Callable[[], None]:
    return lambda: measure(*arguments)
