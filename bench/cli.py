"""The command line: ``python -m bench``."""

import argparse
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from bench import results
from bench.display import Display, header
from bench.pairs import PAIRS, Pair
from bench.run import Session
from bench.setups import DTYPES, SETUPS, Setup, named
from bench.shapes import SHAPES, numel
from bench.tables import compared, tables
from fused_optim.backends import dispatch
from fused_optim.ops import FAMILIES

_OPS = tuple(FAMILIES)
PARTS = ("ratios", "rows", "memory")
"""What a run measures, in this order: what matters most comes first where time is short."""

# The first of each are the quick ones; goals on a GPU are those of the lists up to llama-8b-1of8.
_CPU_SHAPES = ("gpt2-30M", "gpt2-124M", "tiny-1000", "lora-r16", "resnet-101", "vit-b16", "t5-base")
_CUDA_SHAPES = ("llama-8b-2l", "tiny-1000", "t5-base", "lora-r16", "resnet-101", "llama-8b-1of8")
_CUDA_SHAPES += ("gpt2-124M", "vit-b16", "one-16M", "one-256M", "llama-8b-4l", "llama-8b", "one-1G")
_EXTENTS = {
    ("cpu", "quick"): (_CPU_SHAPES[:1], 5),
    ("cpu", "default"): (_CPU_SHAPES[:4], 9),
    ("cpu", "full"): (_CPU_SHAPES, 21),
    ("cuda", "quick"): (_CUDA_SHAPES[:3], 11),
    ("cuda", "default"): (_CUDA_SHAPES[:-3], 25),
    ("cuda", "full"): (_CUDA_SHAPES, 51),
}
"""Lists of shapes and rounds."""

_MEMORY_SHAPES = {"cpu": ("gpt2-30M",), "cuda": ("llama-8b-2l", "tiny-1000")}


class Task(NamedTuple):
    what: str
    setups: tuple[Setup, ...]
    dtype: str
    measure: Callable[[], None]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures optimizers against each other, in turns, on this machine.",
        epilog="Lists are separated by commas. Exits with 1 where a floor is missed, two "
        "optimizers of equal semantics disagree, or something of this package or torch fails.",
    )
    flag = found.add_argument
    flag("--list", action="store_true", help="list setups, shapes and pairs, and stop")
    flag("--op", type=_names(_OPS), help=", ".join(_OPS))
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
    flag("--time-limit", type=float, default=math.inf, metavar="SECONDS", help="then stop")
    flag("--json", type=Path, metavar="FILE", help="write results here, after each measurement")
    flag("--merge", type=Path, metavar="EARLIER", help="keep this file's figures in --json's too")
    flag("--compare", type=Path, metavar="BASE", help="compare with this earlier result file")
    return found


def main(arguments: list[str] | None = None) -> int:
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
    paths = (options.compare, options.merge)
    base, earlier = (results.load(path) if path else None for path in paths)
    try:
        dispatch.check_backend(options.backend or "auto", "adamw_", device)
    except (RuntimeError, ValueError) as error:
        found.error(str(error))
    session = Session(
        device=device,
        rounds=options.rounds or _EXTENTS[device.type, options.extent][1],
        backend=options.backend,
        json=options.json,
        earlier=earlier,
        deadline=time.monotonic() + options.time_limit,
        warm_up=options.warm_up,
    )
    display.say(header(session.results.machine))
    run(session, list(tasks(session, options)), display)
    return report(session, base, display)


def tasks(session: Session, options: argparse.Namespace) -> Iterator[Task]:
    device = session.device.type
    shapes = options.shapes or _EXTENTS[device, options.extent][0]
    if "ratios" in options.parts:
        for name, (pair, dtype) in itertools.product(shapes, _selected_pairs(options)):
            setups = (SETUPS[pair.ours], SETUPS[pair.baseline])
            measure = functools.partial(session.measure_pair, pair, name, dtype)
            yield Task(f"{pair}, {name}, {dtype}", setups, dtype, measure)
    if "rows" in options.parts:
        for name, (setup, dtype) in itertools.product(shapes, _selected_setups(options)):
            measure = functools.partial(session.measure_row, setup, name, dtype)
            yield Task(f"{setup.name}, {name}, {dtype}", (setup,), dtype, measure)
    if "memory" in options.parts:
        shapes = options.shapes or _MEMORY_SHAPES[device]
        for name, (setup, dtype) in itertools.product(shapes, _selected_setups(options)):
            measure = functools.partial(session.measure_memory, setup, name, dtype)
            yield Task(f"memory of {setup.name}, {name}, {dtype}", (setup,), dtype, measure)


def run(session: Session, work: list[Task], display: Display) -> None:
    session.measure_copy()
    with display.progress(len(work)) as advance:
        for index, task in enumerate(work):
            if session.over:
                session.give_up(task.what for task in work[index:])
                break
            advance(task.what)
            if not any([session.why_not(setup, task.dtype) for setup in task.setups]):
                session.attempt(task.what, task.setups, task.measure)


def report(session: Session, base: results.Results | None, display: Display) -> int:
    for title, table in tables(session.results).items():
        display.table(title, table)
    if base is not None:
        display.say(f"\ncompared with\n{header(base.machine)}")
        both = compared(base, session.results)
        for title, table in both.items():
            display.table(title, table)
        if not both:
            display.say("nothing that was measured now is in the base")
    for failure in session.failures:
        display.say(f"FAILED  {failure}")
    below = [check.name for check in session.results.checks if not check.above_floor]
    if below:
        display.say(f"below their floors: {'; '.join(below)}")
    return int(bool(below or session.failures))


def _selected_pairs(options: argparse.Namespace) -> Iterator[tuple[Pair, str]]:
    for pair in PAIRS:
        if named(str(pair), options.only) and SETUPS[pair.ours].op in (options.op or _OPS):
            yield from ((pair, d) for d in pair.dtypes if d in (options.dtype or DTYPES))


def _selected_setups(options: argparse.Namespace) -> Iterator[tuple[Setup, str]]:
    for setup in SETUPS.values():
        if named(setup.name, options.only) and setup.op in (options.op or _OPS):
            wanted = options.dtype or ("fp32", "bf16")
            yield from ((setup, dtype) for dtype in setup.dtypes if dtype in wanted)


def _list(display: Display) -> None:
    setups = [(s.name, s.op, s.source, " ".join(s.dtypes)) for s in SETUPS.values()]
    lists = [(name, len(s), f"{numel(s):,}") for name, s in SHAPES.items()]
    pairs = [(p.ours, p.baseline, p.kind, " ".join(p.dtypes)) for p in PAIRS]
    for title, rows, columns in (
        ("setups", setups, ("name", "op", "source", "dtypes")),
        ("shapes", lists, ("name", "tensors", "parameters")),
        ("pairs", pairs, ("ours", "baseline", "kind", "dtypes")),
    ):
        display.table(title, pd.DataFrame(rows, columns=columns))


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
