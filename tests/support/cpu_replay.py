"""The CPU kernels as a program without Python, which runs the calls of cpu_calls.py again.

Any compiler may make it: for another architecture, or with a sanitizer that torch's own libraries
would confuse.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cpu_module
import host_module

SOURCES = Path(__file__).with_name("replay")
X86 = platform.machine().lower() in ("x86_64", "amd64")
Sets = Mapping[str, tuple[str, str]]
"""Instruction sets, as setup.py has them."""


class Program(NamedTuple):
    """What was built: the program, and the library whose threads it runs on."""

    path: Path
    team: Path

    def replay(
        self,
        calls: Path,
        threads: int,
        under: Iterable[str] = (),
        counts: Path | None = None,
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run the calls of a file again.

        Args:
            calls: the file.
            threads: how many.
            under: a command that runs the program.
            counts: where a program that counts accesses writes what replay/counts.h says.
            variables: of the environment.
        """
        command = [*under, self.path, calls, str(threads), self.team, *([counts] if counts else [])]
        env = {**os.environ, **variables}
        return subprocess.run(command, capture_output=True, text=True, env=env)


def build(
    compiler: str, *flags: str, sets: Sets | None = None, fault: tuple[str, str, str] | None = None
) -> Program:
    """Compile the kernels and replay/, once per change of them.

    Args:
        compiler: its command.
        flags: beside those of setup.py.
        sets: None for those of x86-64.
        fault: a file under csrc/, a text that it has once, and what is compiled instead.
    """
    texts = [source.read_text() for source in sorted(SOURCES.iterdir())]
    key = host_module.digest("replay", compiler, *flags, repr((sets, fault)), *texts)
    folder = host_module.build_folder("replay", key)
    made = Program(folder / "replay", folder / "team.so")
    with host_module.locked(folder):
        if not made.path.exists():
            csrc = host_module.CSRC if fault is None else _faulty(folder, *fault)
            command, jobs = _jobs(folder, csrc, shlex.split(compiler), flags, sets)
            jobs.append([*command, "-shared", SOURCES / "team.cpp", "-pthread", "-o", made.team])
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(_run, jobs))
            objects, unfinished = sorted(folder.glob("*.o")), folder / "unfinished"
            _run([*command, *objects, "-ldl", "-pthread", "-o", unfinished])
            for each in objects:
                each.unlink()
            unfinished.rename(made.path)
    return made


def _jobs(
    folder: Path, csrc: Path, compiler: list[str], more: Sequence[str], sets: Sets | None
) -> tuple[list[Any], list[list[Any]]]:
    """Return how anything is compiled, and the commands that make the objects of the program."""
    setup = cpu_module.recipe()
    usual = [flag for flag in (*setup["HOST_FLAGS"], *setup["CPU_FLAGS"]) if flag != "-Icsrc"]
    command = [*compiler, *usual, *more, "-g", f"-I{csrc}", "-DFUSED_OPTIM_CPU=1"]
    jobs = []
    for name, (isa, flags) in (sets or setup["X86_KERNELS"]).items():
        own = [f"-DFUSED_OPTIM_NAMESPACE=fused_optim_{name}", f'-DFUSED_OPTIM_ISA="{isa}"']
        own += [*shlex.split(flags), "-c", csrc / "cpu/kernels.cpp"]
        jobs.append([*command, *own, "-o", folder / f"kernels_{name}.o"])
    sources = [csrc / f"{name}.cpp" for name in setup["CPU_SOURCES"] if name != "bindings"]
    for source in (*sources, SOURCES / "replay.cpp", SOURCES / "counts.cpp"):
        jobs.append([*command, "-c", source, "-o", folder / f"{source.stem}.o"])
    return command, jobs


def _faulty(folder: Path, name: str, sound: str, faulty: str) -> Path:
    """Return a copy of csrc/ in which one file has another text."""
    csrc = folder / "csrc"
    for source in host_module.CSRC.rglob("*"):
        if source.is_file():
            copy = csrc / source.relative_to(host_module.CSRC)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    text = (csrc / name).read_text()
    assert text.count(sound) == 1, f"{name} has {sound!r} {text.count(sound)} times, not once"
    (csrc / name).write_text(text.replace(sound, faulty))
    return csrc


def _run(command: list[Any]) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
