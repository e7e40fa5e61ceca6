"""The command line, and the settings that decide what a run computes."""

import argparse
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from gpt import GPTConfig
from optimizers import RECIPES, Recipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STATE_DTYPES = DTYPES | {"fp16": torch.float16}
LOW_PRECISION = ("auto", "split", "kahan", "stochastic", "nearest", "master")


@dataclass(frozen=True)
class Settings:
    """All that the numbers of a run depend on, apart from its optimizer and the corpus."""

    layers: int
    width: int
    heads: int
    context: int
    batch: int
    steps: int
    warmup_steps: int
    lr_scale: float
    weight_decay: float
    seed: int
    dtype: str
    low_precision: str
    state_dtype: str | None  # None is each optimizer's own default
    device: str
    threads: int  # they decide how the CPU splits a sum

    @property
    def model(self) -> GPTConfig:
        """The shape of the model."""
        return GPTConfig(self.layers, self.width, self.heads, self.context)

    @property
    def final_steps(self) -> int:
        """How many of the last training losses make up the final one."""
        return max(1, self.steps // 20)

    @property
    def parameter_dtype(self) -> torch.dtype:
        """The dtype of the parameters and of the model's math."""
        return DTYPES[self.dtype]

    @property
    def fused_options(self) -> dict[str, Any]:
        """How fused_optim's optimizers keep low-precision parameters and their own state."""
        options: dict[str, Any] = {"low_precision": self.low_precision}
        if self.state_dtype:
            options["state_dtype"] = STATE_DTYPES[self.state_dtype]
        return options

    def fingerprint(self, recipe: Recipe, corpus_digest: str) -> str:
        """A short name for the one result these settings, this recipe and this corpus have.

        It is part of the checkpoint's file name: the same arguments find their run again, other
        arguments never touch it.
        """
        parts = [asdict(self), recipe.hyperparameters, corpus_digest]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


def build_parser() -> argparse.ArgumentParser:
    """The options of `train_gpt.py`."""
    parser = argparse.ArgumentParser(
        prog="train_gpt.py",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Train a small byte-level GPT on Python's standard library, once per "
        "optimizer, and compare them. A run that was stopped or killed resumes with the same "
        "command.",
    )
    add = parser.add_argument
    add("--optimizers", default=",".join(RECIPES), help="which to run, separated by commas")
    add("--steps", type=positive, default=800, help="optimizer steps per run")
    add("--warmup", type=float, default=0.1, help="share of the steps spent on warm-up")
    add("--layers", type=positive, default=GPTConfig.layers)
    add("--width", type=positive, default=GPTConfig.width)
    add("--heads", type=positive, default=GPTConfig.heads)
    add("--context", type=positive, default=GPTConfig.context, help="bytes per window")
    add("--batch", type=positive, default=8, help="windows per step")
    add("--lr-scale", type=float, default=1.0, help="multiplies every peak learning rate")
    add("--weight-decay", type=float, default=0.1, help="of the AdamW family, on matrices only")
    add("--dtype", choices=DTYPES, default="fp32", help="of the parameters and the model's math")
    add(
        "--low-precision",
        choices=LOW_PRECISION,
        default="auto",
        help="how fused_optim keeps the fp32 value of a bf16 parameter",
    )
    add(
        "--state-dtype",
        choices=STATE_DTYPES,
        default=None,
        help="of fused_optim's moments; None is each optimizer's own default",
    )
    add("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    add("--threads", type=positive, default=2, help="on the CPU; a larger model wants more")
    add("--seed", type=int, default=0)
    add("--corpus", type=Path, default=None, help="a folder of Python files to train on instead")
    add("--out", type=Path, default=Path("runs/demo"), help="folder for all output")
    add("--checkpoint-every", type=positive, default=100, metavar="STEPS")
    add("--fresh", action="store_true", help="discard this command's checkpoints and start again")
    return parser


def positive(text: str) -> int:
    """An argument that must be at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, Settings]:
    """Read and check the command line."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.optimizers = [key.strip() for key in args.optimizers.split(",") if key.strip()]
    for key in args.optimizers:
        if key not in RECIPES:
            parser.error(f"--optimizers: {key!r} is not one of {', '.join(RECIPES)}")
    if not args.optimizers:
        parser.error(f"--optimizers: name at least one of {', '.join(RECIPES)}")
    if not 0 <= args.warmup < 1:
        parser.error(f"--warmup: {args.warmup} is not a share from 0 up to, but not including, 1")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    shared = {name: getattr(args, name) for name in Settings.__annotations__ if name in args}
    settings = Settings(**shared, warmup_steps=int(args.steps * args.warmup))
    try:
        _ = settings.model
        torch.empty(1, device=settings.device)
    except (ValueError, RuntimeError, AssertionError) as error:
        parser.error(str(error))
    return args, settings
