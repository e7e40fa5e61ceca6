"""Does 16-bit training learn like float32's? ``python examples/demo/precision.py``.

The demo's GPT is trained in float32 with several seeds, and in bfloat16 with every way to keep what
a bfloat16 parameter can't hold, on the same batches. A run that is in the file already is not
repeated, so an interrupted measurement goes on where it was. docs/precision.md shows the results.

Matrix products are those of bfloat16 hardware: their operands and results are bfloat16, their sums
float32. Where a CPU has no such units, float32 arithmetic between roundings gives the same numbers
many times faster than torch's own bfloat16 does.
"""

import argparse
import dataclasses
import datetime
import json
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from corpus import Corpus, load_corpus
from gpt import GPT, GPTConfig
from torch import nn

import fused_optim
from fused_optim import torch_compat

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "cpu-2core" / "precision_curves.json"
IMAGE = ROOT / "docs" / "images" / "precision_curves.png"

FLOAT32_SEEDS = 5


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all runs have in common. Peak learning rates are by family of optimizers."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    context: int = 64
    batch: int = 8
    steps: int = 2000
    warmup_steps: int = 100
    lr_adamw: float = 1e-3
    lr_adafactor: float = 1e-2
    weight_decay: float = 0.1
    evaluate_every: int = 100
    evaluation_windows: int = 256


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An optimizer, and the dtype of the parameters that it trains."""

    name: str
    make: Callable[..., torch.optim.Optimizer]
    options: dict[str, Any]
    dtype: torch.dtype = torch.bfloat16
    seeds: int = 1

    @property
    def family(self) -> str:
        """Whose learning rate it takes."""
        return "adafactor" if "Adafactor" in self.name else "adamw"


def recipes() -> list[Recipe]:
    """Every recipe, in the order in which tables and pictures have them."""
    fp32, adamw, adafactor = torch.float32, fused_optim.AdamW, fused_optim.Adafactor
    split, fixed = {"low_precision": "split"}, {"relative_step": False}
    half = {**split, "state_dtype": torch.bfloat16}
    modes = ("split", "kahan", "stochastic", "nearest")
    return [
        Recipe("AdamW float32", adamw, {}, fp32, FLOAT32_SEEDS),
        *(Recipe(f"AdamW {mode}", adamw, {"low_precision": mode}) for mode in modes),
        Recipe("AdamW split, bfloat16 moments", adamw, half),
        Recipe("torch_compat.AdamW", torch_compat.AdamW, {}),
        Recipe("torch.optim.AdamW", torch.optim.AdamW, {}),
        Recipe("Adafactor float32", adafactor, fixed, fp32, FLOAT32_SEEDS),
        Recipe("Adafactor split", adafactor, {**fixed, **split}),
    ]


def eight_bit_recipes() -> list[Recipe]:
    """Moments in 8 bits, over as many seeds as float32: 6 and 4 bytes a parameter."""
    fp32, adamw, seeds = torch.float32, fused_optim.AdamW, FLOAT32_SEEDS
    found = [Recipe("AdamW float32", adamw, {}, fp32, seeds)]
    for mode in ("split", "stochastic"):
        plain = {"low_precision": mode}
        coded = {**plain, "state_dtype": "int8"}
        found.append(Recipe(f"AdamW {mode}", adamw, plain, seeds=seeds))
        found.append(Recipe(f"AdamW {mode}, 8-bit moments", adamw, coded, seeds=seeds))
    return found


RECIPES = recipes()
SETS = ("modes", "8-bit")
"""What may be measured: `RECIPES`, and moments in 8 bits for half as many steps again."""


def round_activations(model: nn.Module) -> None:
    """Store in bfloat16 what passes between modules, and its gradient on the way back."""

    def rounded(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.bfloat16().float()

    for module in model.modules():
        if not isinstance(module, (GPT, nn.ModuleList)):
            module.register_forward_hook(rounded)


class Trained:
    """A model in one precision, on float32 arithmetic throughout."""

    def __init__(self, recipe: Recipe, seed: int, settings: Settings, corpus: Corpus) -> None:
        torch.manual_seed(seed)
        self.seed, self.settings, self.corpus = seed, settings, corpus
        shape = (settings.layers, settings.width, settings.heads, settings.context)
        self.model = GPT(GPTConfig(*shape))
        # What the optimizer sees; the model computes on their float32 values.
        self.stored = self.model
        if recipe.dtype is torch.bfloat16:
            self.stored = GPT(GPTConfig(*shape)).to(recipe.dtype)
            self.stored.load_state_dict(self.model.state_dict())
            round_activations(self.model)
        groups = fused_optim.param_groups_weight_decay(self.stored, settings.weight_decay)
        lr = {"adamw": settings.lr_adamw, "adafactor": settings.lr_adafactor}[recipe.family]
        self.optimizer = recipe.make(groups, lr=lr, **recipe.options)
        self.scheduler = fused_optim.get_cosine_schedule_with_warmup(
            self.optimizer, settings.warmup_steps, settings.steps
        )

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean loss of a batch, on the stored weights."""
        if self.stored is self.model:
            return self.model(tokens, targets)
        weights = {name: p.float() for name, p in self.stored.named_parameters()}
        return torch.func.functional_call(self.model, weights, (tokens, targets))

    def curve(self) -> Iterator[tuple[int, float]]:
        """Train; yield (steps done, loss on held-out files) now and then."""
        settings = self.settings
        yield 0, self.evaluate()
        for step in range(settings.steps):
            batch = self.corpus.batch(self.seed, step, settings.batch, settings.context)
            self.loss(*batch).backward()
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            if (step + 1) % settings.evaluate_every == 0:
                yield step + 1, self.evaluate()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss on the held-out files."""
        inputs = self.corpus.evaluation(self.settings.evaluation_windows, self.settings.context)
        parts = zip(*(part.split(64) for part in inputs), strict=True)
        return fmean(self.loss(*part).item() for part in parts)

    def bytes_per_parameter(self) -> float:
        """Count parameters and state; gradients are not in it."""
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = [v for values in self.optimizer.state.values() for v in values.values()]
        tensors = [t for t in (*params, *state) if isinstance(t, torch.Tensor) and t.dim()]
        return sum(t.nbytes for t in tensors) / sum(p.numel() for p in params)


def train(recipe: Recipe, seed: int, settings: Settings, corpus: Corpus) -> dict[str, Any]:
    """Train one recipe with one seed and return what the result file keeps."""
    trained = Trained(recipe, seed, settings, corpus)
    steps, losses = zip(*((s, round(loss, 4)) for s, loss in trained.curve()), strict=True)
    first = trained.optimizer.state[next(trained.stored.parameters())].get("exp_avg")
    options = getattr(trained.optimizer, "settings", dict)(trained.optimizer.param_groups[0])
    return {
        "name": recipe.name,
        "optimizer": recipe.family,
        "dtype": str(recipe.dtype).removeprefix("torch."),
        "mode": options.get("low_precision"),  # None: torch's optimizer
        "state_dtype": None if first is None else str(first.dtype).removeprefix("torch."),
        "seed": seed,
        "bytes_per_parameter": round(trained.bytes_per_parameter(), 2),
        "steps": steps,
        "losses": losses,
        "final_loss": losses[-1],
    }


def pending(
    results: dict[str, Any], recipes: list[Recipe] = RECIPES
) -> Iterator[tuple[Recipe, int]]:
    """Yield the (recipe, seed) of every run that the results lack."""
    there = {(run["name"], run["seed"]) for run in results["runs"]}
    runs = ((recipe, seed) for recipe in recipes for seed in range(recipe.seeds))
    return ((recipe, seed) for recipe, seed in runs if (recipe.name, seed) not in there)


def load(path: Path, settings: Settings, corpus: Corpus) -> dict[str, Any]:
    """Return the results so far, if they were measured with these settings on this text."""
    wanted = {**dataclasses.asdict(settings), "corpus": corpus.name, "digest": corpus.digest}
    if not path.exists():
        date = datetime.date.today().isoformat()
        here = {"date": date, "torch": torch.__version__, "cpu": platform.processor()}
        return {"settings": wanted, "machine": here, "runs": []}
    results = json.loads(path.read_text())
    if results["settings"] != wanted:
        raise ValueError(
            f"{path} holds runs with the settings {results['settings']}, not {wanted}; name "
            "another file with --json, or remove it to measure anew"
        )
    return results


def save(results: dict[str, Any], path: Path) -> None:
    """Replace the file at once; it has a run a line, for diffs that can be read."""
    order = [recipe.name for recipe in (*RECIPES, *eight_bit_recipes())]
    results["runs"].sort(key=lambda run: (order.index(run["name"]), run["seed"]))
    head = json.dumps({k: results[k] for k in ("settings", "machine")}, indent=1)[:-2]
    runs = ",\n  ".join(map(json.dumps, results["runs"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".tmp")
    new.write_text(f'{head},\n "runs": [\n  {runs}\n ]\n}}\n')
    new.replace(path)


def main(arguments: list[str] | None = None) -> int:
    """Train what the result file lacks, then draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", choices=SETS, default="modes", help="what is trained")
    parser.add_argument("--json", type=Path, default=RESULTS, help="file of the results")
    parser.add_argument("--image", type=Path, default=IMAGE, help="file of the picture")
    options = parser.parse_args(arguments)
    from precision_plot import draw  # matplotlib, missed now rather than after hours

    torch.set_num_threads(1)  # a model this small gains nothing from more
    recipes, settings, corpus = RECIPES, Settings(), load_corpus()
    if options.recipes == "8-bit":
        recipes, settings = eight_bit_recipes(), dataclasses.replace(settings, steps=3000)
    results = load(options.json, settings, corpus)
    for recipe, seed in list(pending(results, recipes)):
        start = time.perf_counter()
        run = train(recipe, seed, settings, corpus)
        results["runs"].append(run)
        save(results, options.json)
        seconds = time.perf_counter() - start
        print(f"{recipe.name:32}seed {seed}  {run['final_loss']:.4f}  {seconds:.0f} s", flush=True)
    draw(results, options.image)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
