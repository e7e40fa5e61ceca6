"""Train the same small GPT with four optimizers and draw their loss curves.

Example:
    python examples/train_gpt.py --steps 2000 --layers 6 --width 256 --dtype bf16
"""

import json
import math
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

# OpenMP reads this when torch loads it. By default its idle threads spin, and a small model on a
# busy machine then trains ten times slower than with threads that sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402
from corpus import Corpus, load_corpus  # noqa: E402
from optimizers import RECIPES  # noqa: E402
from plot import draw  # noqa: E402
from progress import Display, display, summary_table  # noqa: E402
from rich.console import Console  # noqa: E402
from settings import Settings, parse  # noqa: E402
from training import Run, Stopped, StopRequest, deferred_signals  # noqa: E402


def be_deterministic(threads: int) -> None:
    """Make a resumed run repeat every bit, on GPUs and whatever the number of cores."""
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False


def checkpoint_path(out: Path, key: str, settings: Settings, corpus: Corpus) -> Path:
    """Where the run of these settings keeps its state."""
    return out / "checkpoints" / f"{key}-{settings.fingerprint(RECIPES[key], corpus.digest)}.pt"


def train_all(
    paths: dict[str, Path],
    settings: Settings,
    corpus: Corpus,
    checkpoint_every: int,
    stop: StopRequest,
    shown: Display,
) -> dict[str, Run]:
    """Train, or finish training, one run per optimizer."""
    runs = {}
    for key, path in paths.items():
        run = Run(RECIPES[key], settings, corpus, path)
        run.resume()
        run.train(checkpoint_every, stop, shown.watch(key, run))
        runs[key] = run
    return runs


def report(runs: dict[str, Run], settings: Settings, corpus: Corpus) -> dict[str, Any]:
    """Curves and results, ready for JSON."""
    return {
        "settings": vars(settings),
        "corpus": corpus.name,
        "torch": torch.__version__,
        "runs": {
            key: {"label": run.recipe.label, **vars(run.history), "summary": run.summary()}
            for key, run in runs.items()
        },
    }


def finite(value: Any) -> Any:
    """A diverged loss becomes null, since JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def stopped_message(stopped: Stopped) -> str:
    """How to go on."""
    command = shlex.join(["python", *(word for word in sys.argv if word != "--fresh")])
    return (
        f"\nStopped by {signal.Signals(stopped.signum).name} at step {stopped.run.step} of "
        f"{stopped.run.settings.steps}; the checkpoint is {stopped.run.path}\n"
        f"To resume, run the same command again: {command}"
    )


def finish(runs: dict[str, Run], settings: Settings, corpus: Corpus, out: Path) -> None:
    """Write the curves and the picture, and print the table."""
    curves = report(runs, settings, corpus)
    (out / "curves.json").write_text(json.dumps(finite(curves), indent=1, allow_nan=False))
    draw(curves, out / "curves.png")
    console = Console()
    console.print(summary_table(curves, settings.final_steps))
    console.print(f"{out / 'curves.png'}  {out / 'curves.json'}", soft_wrap=True)


def main() -> int:
    """Run the demo; the exit status is 128 + the signal that stopped it, if one did."""
    args, settings = parse()
    be_deterministic(settings.threads)
    with deferred_signals() as stop:
        corpus = load_corpus(args.corpus)
        paths = {k: checkpoint_path(args.out, k, settings, corpus) for k in args.optimizers}
        if args.fresh:
            for path in paths.values():
                path.unlink(missing_ok=True)
        try:
            with display(Console()) as shown:
                runs = train_all(paths, settings, corpus, args.checkpoint_every, stop, shown)
        except Stopped as stopped:
            print(stopped_message(stopped), file=sys.stderr)
            return 128 + stopped.signum
        finish(runs, settings, corpus, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
