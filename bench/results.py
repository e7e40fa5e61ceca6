"""The result file: what its keys are, how it is read and written.

Every table, picture and README figure comes from such a file. Keys that do not apply are null,
never missing, so that a reader needs no defaults.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from bench.system import Machine

FORMAT = 2
"""Raised when the meaning of a key changes. Format 1 is read too: there a ratio was the median over
the pairs, which its times, medians over all rounds, didn't have."""

KINDS = ("default", "equal bytes", "equal semantics")
"""What a ratio compares: two defaults, two optimizers of equal memory, or the same update."""


@dataclass
class Copy:
    """Bandwidth of a copy within the device, bytes read plus bytes written."""

    gb_per_s: float
    bytes: int
    quartiles: list[float]


class _Item:
    """One of a list; another file may have it as well, under the same key."""

    KEY: ClassVar[tuple[str, ...]]

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(getattr(self, name) for name in self.KEY)


@dataclass
class Row(_Item):
    """The time of one optimizer's step on one list of shapes."""

    KEY = ("optimizer", "shapes", "dtype")
    op: str  # a name of fused_optim.ops.FAMILIES
    optimizer: str
    source: str
    backend: str | None  # None for optimizers that are not this package's
    shapes: str
    dtype: str
    tensors: int
    parameters: int
    rounds: int
    ms: float
    ms_quartiles: list[float]
    host_us: float | None = None  # None on a CPU, where it is the time itself
    traffic_bytes_per_parameter: float | None = None
    gb_per_s: float | None = None
    copy_percent: float | None = None
    launches: int | None = None


@dataclass
class Check(_Item):
    """The verdict on a figure."""

    KEY = ("name",)
    name: str
    value: float
    unit: str
    goal: float
    floor: float | None
    met: bool
    above_floor: bool


@dataclass
class Ratio(_Item):
    """Two optimizers measured in turns; a ratio above 1 says that this package is faster.

    ``ratio`` is `quotient` of the two times, and ``ratio_quartiles`` are over the pairs of rounds.
    """

    KEY = ("ours", "baseline", "shapes", "dtype")
    ours: str
    baseline: str
    shapes: str
    dtype: str
    kind: str
    parameters: int
    baseline_ms: float
    ours_ms: float
    rounds: int
    ratio: float
    ratio_quartiles: list[float]
    host_ratio: float | None = None  # this package's host time over the baseline's
    goal: float | None = None
    floor: float | None = None

    def __str__(self) -> str:
        return f"{self.ours} vs {self.baseline}, {self.shapes}, {self.dtype}"

    def check(self) -> Check | None:
        if self.goal is None:
            return None
        above = self.floor is None or self.ratio >= self.floor
        met = self.ratio >= self.goal
        return Check(str(self), self.ratio, "x", self.goal, self.floor, met, above)


@dataclass
class Memory(_Item):
    """Bytes of one optimizer, measured in a process of its own."""

    KEY = ("optimizer", "shapes", "dtype")
    optimizer: str
    source: str
    shapes: str
    dtype: str
    parameters: int
    state_bytes_per_parameter: float
    bytes_per_parameter: float  # state and parameter, no gradient
    transient_bytes: int | None


@dataclass
class Missing(_Item):
    KEY = ("what",)
    what: str
    why: str


@dataclass
class Results:
    """All that one run measured."""

    machine: Machine
    copy: Copy | None = None
    rows: list[Row] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the file at once; what fails to become JSON leaves the old one."""
        text = json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1)
        write(path, text + "\n")

    def frame(self, name: str) -> pd.DataFrame:
        """Return one of the lists as a table; what is None is missing."""
        columns = [column.name for column in dataclasses.fields(_ITEMS[name])]
        return pd.DataFrame([vars(item) for item in getattr(self, name)], columns=columns)


_ITEMS = {"rows": Row, "ratios": Ratio, "memory": Memory, "checks": Check, "missing": Missing}


def write(path: Path, text: str) -> None:
    """Replace a file's content at once: a reader, or a kill, never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.tmp")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def quotient(baseline_ms: float, ours_ms: float) -> float:
    """Return the ratio of two times to the three digits that are shown and judged."""
    return float(f"{baseline_ms / ours_ms:.3g}")


def merged(old: Results | None, new: Results | None) -> Results | None:
    """Return the figures of both; where both have one, the new one's.

    Figures of another device are not mixed with these: the new ones stand alone then.
    """
    if old is None or new is None or old.machine.place != new.machine.place:
        return new or old
    both = Results(new.machine, new.copy or old.copy)
    for name in _ITEMS:
        items = (*getattr(old, name), *getattr(new, name))
        setattr(both, name, list({item.key: item for item in items}.values()))
    measured = {str(ratio) for ratio in new.ratios}
    both.missing = [item for item in both.missing if item.what not in measured]
    return both


def load(path: Path) -> Results:
    """Read a result file; ratios of format 1 are made those of their times, and judged again.

    Raises:
        ValueError: it is no result file of this format; the message says which key is wrong.
    """
    try:
        data = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    found = data.pop("format", None) if isinstance(data, dict) else None
    if found not in (1, FORMAT):
        raise ValueError(
            f"{path} has format {found!r}, and format {FORMAT} is needed: "
            "measure again with `python -m bench --json FILE`"
        )
    results = _construct(Results, data, f"{path}")
    results.machine = _construct(Machine, data["machine"], f"{path}: machine")
    results.copy = data["copy"] and _construct(Copy, data["copy"], f"{path}: copy")
    for name, cls in _ITEMS.items():
        items = [_construct(cls, d, f"{path}: {name}[{i}]") for i, d in enumerate(data[name])]
        setattr(results, name, items)
    if found == 1:
        for ratio in results.ratios:
            ratio.ratio = quotient(ratio.baseline_ms, ratio.ours_ms)
        verdicts = {str(ratio): ratio.check() for ratio in results.ratios}
        results.checks = [verdicts.get(check.name) or check for check in results.checks]
    return results


def read(path: Path) -> Results | None:
    """Return the figures of a file, or None where there are none to be read."""
    try:
        return load(path)
    except (OSError, ValueError):
        return None


def _construct(cls: type, data: Any, where: str) -> Any:
    names = {f.name for f in dataclasses.fields(cls)}
    given = set(data) if isinstance(data, dict) else {type(data).__name__}
    if given != names:
        raise ValueError(
            f"{where} lacks {sorted(names - given)} and has the unknown {sorted(given - names)}"
        )
    return cls(**data)
