"""The text: Python's own standard library, which every machine that runs this has."""

import hashlib
import sysconfig
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# Not prose that a person wrote for a person: tests, generated tables, other people's packages.
SKIPPED_FOLDERS = {
    "__pycache__", "dist-packages", "encodings", "idle_test", "idlelib", "lib2to3",
    "pydoc_data", "site-packages", "test", "tests",
}  # fmt: skip
VALIDATION_SHARE = 10  # one file in ten is held out
END_OF_FILE = b"\0"
EVALUATION_SEED = 2**40  # apart from any (seed, step) of the training batches


@dataclass(frozen=True)
class Corpus:
    """Training and validation text as byte tensors."""

    name: str
    train: Tensor
    validation: Tensor
    digest: str  # of both: two machines with equal digests train on equal bytes

    def batch(self, seed: int, step: int, size: int, context: int) -> tuple[Tensor, Tensor]:
        """The inputs and targets of one step, [size, context] each.

        They depend on nothing but the arguments, so that a resumed run needs no loader state and
        every optimizer sees the same bytes.
        """
        return windows(self.train, (seed << 32) + step, size, context)

    def evaluation(self, size: int, context: int) -> tuple[Tensor, Tensor]:
        """The fixed windows that the validation loss is measured on."""
        return windows(self.validation, EVALUATION_SEED, size, context)


def windows(text: Tensor, seed: int, size: int, context: int) -> tuple[Tensor, Tensor]:
    """Draw `size` random windows, and the same windows one byte further on."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - context, (size, 1), generator=generator)
    index = starts + torch.arange(context)
    return text[index].long(), text[index + 1].long()


def source_files(root: Path) -> list[Path]:
    """The Python files under `root`, in one order everywhere."""
    return [
        path
        for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix())
        if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts[:-1])
        and not path.name.startswith("_sysconfigdata")  # generated, and different on every machine
    ]


def load_corpus(root: Path | None = None) -> Corpus:
    """Read the standard library, or the Python files under `root`, and split it by file."""
    name = root.name if root else "Python's standard library"
    root = root or Path(sysconfig.get_paths()["stdlib"])
    parts: dict[bool, list[bytes]] = {False: [], True: []}
    for path in source_files(root):
        held_out = zlib.crc32(path.relative_to(root).as_posix().encode()) % VALIDATION_SHARE == 0
        parts[held_out].append(path.read_bytes())
    train, validation = (END_OF_FILE.join(parts[held_out]) for held_out in (False, True))
    if min(len(train), len(validation)) < 10_000:
        raise ValueError(
            f"{root} holds too little Python source: {len(train):,} bytes for training and "
            f"{len(validation):,} for validation; name a larger folder with --corpus"
        )
    digest = hashlib.sha256(train + END_OF_FILE + validation).hexdigest()
    return Corpus(name, as_tensor(train), as_tensor(validation), digest)


def as_tensor(text: bytes) -> Tensor:
    """The bytes as uint8, in memory that torch owns."""
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).clone()
