"""Train the same small GPT with four optimizers and draw their loss curves.

python examples/demo/train_gpt.py --steps 2000 --layers 6 --width 256 --dtype bf16
"""

import argparse
import json
import os
import shlex
import signal
import sys
from pathlib import Path

# OpenMP reads this when torch loads it. By default its idle threads spin, and a small model on a
# busy machine then trains ten times slower than with threads that sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402
from corpus import load_corpus  # noqa: E402
from gpt import GPTConfig  # noqa: E402
from optimizers import DTYPES, RECIPES  # noqa: E402
from rich.console import Console  # noqa: E402
from show import draw, progress, summary_table, watch  # noqa: E402
from training import Run, note_signals  # noqa: E402

LOW_PRECISION = ("auto", "split", "kahan", "stochastic", "nearest", "master")
ELSEWHERE = {"optimizers", "corpus", "out", "checkpoint_every", "fresh", "warmup"}
"""The options that do not decide what an optimizer's run computes from a corpus."""


def parse() -> argparse.Namespace:
    """Read and check the command line."""
    parser = argparse.ArgumentParser(
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Train a small GPT on Python's standard library with every optimizer. A run "
        "that was stopped or killed resumes with the same command.",
    )
    add = parser.add_argument
    add("--optimizers", default=",".join(RECIPES), help="which to run, separated by commas")
    add("--steps", type=int, default=800, help="optimizer steps per run")
    add("--warmup", type=float, default=0.1, help="share of the steps spent on warm-up")
    for name in ("layers", "width", "heads", "context"):
        add(f"--{name}", type=int, default=getattr(GPTConfig, name), help="of the model")
    add("--batch", type=int, default=8, help="windows per step")
    add("--lr-scale", type=float, default=1.0, help="multiplies every peak learning rate")
    add("--weight-decay", type=float, default=0.1, help="of the AdamW family, on matrices only")
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help="of parameters and math")
    add("--low-precision", choices=LOW_PRECISION, default="auto", help="fused_optim's option")
    add("--state-dtype", choices=DTYPES, default=None, help="of fused_optim's moments")
    add("--device", default="auto", help="cpu, cuda, or auto: cuda where there is one")
    add("--threads", type=int, default=2, help="on the CPU; a larger model wants more")
    add("--seed", type=int, default=0, help="of weights and batches")
    add("--corpus", type=Path, default=None, help="a folder of Python files to train on instead")
    add("--out", type=Path, default=Path("runs/demo"), help="folder for all output")
    add("--checkpoint-every", type=int, default=100, metavar="STEPS", help="in steps")
    add("--fresh", action="store_true", help="discard this command's checkpoints and start again")
    args = parser.parse_args()
    args.optimizers = [key.strip() for key in args.optimizers.split(",") if key.strip()]
    if not args.optimizers or set(args.optimizers) - set(RECIPES):
        parser.error(f"--optimizers: name some of {', '.join(RECIPES)}")
    if not 0 <= args.warmup < 1:
        parser.error(f"--warmup: {args.warmup} is not a share from 0 up to, but not including, 1")
    args.warmup_steps = int(args.steps * args.warmup)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in ("steps", "layers", "width", "heads", "context", "batch", "checkpoint_every"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: {getattr(args, name)} is not at least 1")
    if args.width % (2 * args.heads):
        parser.error(f"--width: {args.width} is no multiple of twice --heads, {args.heads}")
    return args


def main() -> int:
    """Run the demo; the exit status is 128 + the signal that stopped it, if one did."""
    args = parse()
    # A resumed run repeats every bit, on GPUs and whatever the number of cores.
    torch.set_num_threads(args.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    settings = {name: value for name, value in vars(args).items() if name not in ELSEWHERE}
    console, runs = Console(), {}
    signals = note_signals()
    with progress(console) as bars:
        corpus = load_corpus(args.corpus)
        for key in args.optimizers:
            run = runs[key] = Run(key, settings, corpus, args.out / "checkpoints", args.fresh)
            run.train(args.checkpoint_every, signals, watch(console, bars, key, run))
            if signals:
                break
    if signals:
        command = shlex.join(["python", *(word for word in sys.argv if word != "--fresh")])
        print(
            f"\nStopped by {signal.Signals(signals[0]).name} at step {run.step} of {args.steps}; "
            f"the checkpoint is {run.path}\nTo resume, run the same command again: {command}",
            file=sys.stderr,
        )
        return 128 + signals[0]
    curves = {"settings": settings, "corpus": corpus.name, "torch": torch.__version__}
    curves["runs"] = {
        key: {"label": run.recipe.label, **run.history, "summary": run.summary()}
        for key, run in runs.items()
    }
    finite = json.loads(json.dumps(curves), parse_constant=lambda _: None)  # JSON knows no NaN
    (args.out / "curves.json").write_text(json.dumps(finite, indent=1))
    draw(curves, args.out / "curves.png")
    console.print(summary_table(curves))
    console.print(f"{args.out / 'curves.png'}  {args.out / 'curves.json'}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
