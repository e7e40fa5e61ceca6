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
        """Inputs and targets of a step, [size, context] each; nothing but the arguments counts."""
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


def load_corpus(root: Path | None = None) -> Corpus:
    """Read the standard library, or the Python files under `root`, and split it by file."""
    name = root.name if root else "Python's standard library"
    root = root or Path(sysconfig.get_paths()["stdlib"])
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        place = path.relative_to(root)
        generated = place.name.startswith("_sysconfigdata")  # different on every machine
        if not generated and SKIPPED_FOLDERS.isdisjoint(place.parts[:-1]):
            held_out = zlib.crc32(place.as_posix().encode()) % VALIDATION_SHARE == 0
            parts[held_out].append(path.read_bytes())
    texts = [END_OF_FILE.join(part) for part in parts]
    if min(map(len, texts)) < 10_000:
        sizes = " and ".join(f"{len(text):,}" for text in texts)
        raise ValueError(
            f"{root} holds too little Python source, {sizes} bytes for training and validation; "
            "name a larger folder with --corpus"
        )
    digest = hashlib.sha256(END_OF_FILE.join(texts)).hexdigest()
    tensors = [torch.frombuffer(bytearray(text), dtype=torch.uint8).clone() for text in texts]
    return Corpus(name, *tensors, digest)
