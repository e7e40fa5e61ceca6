"""Measures optimizers against each other, in turns, on this machine: ``python -m bench``."""

import argparse
import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from bench import results
from bench.display import Display
from bench.pairs import PAIRS, Pair
from bench.run import Session
from bench.setups import DTYPES, SETUPS, SWEPT, Setup, named
from bench.shapes import SHAPES, numel, sweep_lists
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
        description=__doc__,
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
    flag("--sweep", action="store_true", help="only times, by number of tensors and parameters")
    flag("--most", type=float, default=math.inf, help="parameters of a list of --sweep")
    flag("--device", help="cuda or cpu; by default cuda where there is one")
    flag("--backend", choices=dispatch.BACKENDS, help="of this package's optimizers")
    extent = found.add_mutually_exclusive_group()
    extent.add_argument("--quick", dest="extent", action="store_const", const="quick")
    extent.add_argument("--full", dest="extent", action="store_const", const="full")
    found.set_defaults(extent="default")
    flag("--rounds", type=int, help="steps of each optimizer")
    flag("--warm-up", type=float, default=0.2, metavar="SECONDS", help="before a measurement")
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
    base, earlier = (p and results.load(p) for p in (options.compare, options.merge))
    try:
        dispatch.check_backend(options.backend or "auto", "adamw_", device)
    except (RuntimeError, ValueError) as error:
        found.error(str(error))
    rounds = _EXTENTS[device.type, options.extent][1]
    if options.sweep:
        lists = sweep_lists(device.type, options.extent == "quick")
        options.shapes = [name for name in lists if numel(SHAPES[name]) <= options.most]
        options.parts = ("rows",)
        rounds = 7 if options.extent == "quick" else 15
    session = Session(
        device=device,
        rounds=options.rounds or rounds,
        backend=options.backend,
        json=options.json,
        earlier=earlier,
        deadline=time.monotonic() + options.time_limit,
        warm_up=options.warm_up,
    )
    machine = session.results.machine
    display.say(", ".join([str(machine), *map(" ".join, machine.peers.items())]))
    run(session, list(tasks(session, options)), display)
    return report(session, base, display)


def tasks(session: Session, options: argparse.Namespace) -> Iterator[Task]:
    device = session.device.type
    default = _EXTENTS[device, options.extent][0]
    for part, measure, cases, lists in (
        ("ratios", session.measure_pair, _pairs(options), default),
        ("rows", session.measure_row, _setups(options), default),
        ("memory", session.measure_memory, _setups(options), _MEMORY_SHAPES[device]),
    ):
        if part not in options.parts:
            continue
        for name, (case, dtype) in itertools.product(options.shapes or lists, cases):
            pair = isinstance(case, Pair)
            setups = (SETUPS[case.ours], SETUPS[case.baseline]) if pair else (case,)
            what = f"{'memory of ' if part == 'memory' else ''}{case}, {name}, {dtype}"
            yield Task(what, setups, dtype, functools.partial(measure, case, name, dtype))


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
        display.say(f"\ncompared with\n{base.machine}")
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


def _pairs(options: argparse.Namespace) -> Iterator[tuple[Pair, str]]:
    for pair in PAIRS:
        if named(str(pair), options.only) and SETUPS[pair.ours].op in (options.op or _OPS):
            yield from ((pair, d) for d in pair.dtypes if d in (options.dtype or DTYPES))


def _setups(options: argparse.Namespace) -> Iterator[tuple[Setup, str]]:
    swept = SWEPT[: 7 if options.extent == "quick" else None]
    cases = [(s.name, dtype) for s in SETUPS.values() for dtype in s.dtypes]
    for name, dtype in swept if options.sweep else cases:
        setup = SETUPS[name]
        wanted = named(name, options.only) and setup.op in (options.op or _OPS)
        if wanted and dtype in (options.dtype or ("fp32", "bf16")):
            yield setup, dtype


def _list(display: Display) -> None:
    setups = [(s.name, s.op, s.source, " ".join(s.dtypes)) for s in SETUPS.values()]
    lists = [(name, len(s), f"{numel(s):,}") for name, s in SHAPES.items()]
    pairs = [(p.ours, p.baseline, p.kind, " ".join(p.dtypes)) for p in PAIRS]
    for title, rows, columns in (
        ("setups", setups, "name op source dtypes"),
        ("shapes", lists, "name tensors parameters"),
        ("pairs", pairs, "ours baseline kind dtypes"),
    ):
        display.table(title, pd.DataFrame(rows, columns=columns.split()))


def _names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """Return argparse's type of a list of some known names, or of all of them."""

    def parse(text: str) -> tuple[str, ...]:
        names = known if text == "all" else tuple(text.split(","))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(
                f"{', '.join(unknown)} unknown; known are {', '.join(known)}, and all"
            )
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
