"""One optimizer's training run: built alike every time, resumable at every step."""

import hashlib
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from types import SimpleNamespace
from typing import Any

import torch
from corpus import Corpus
from gpt import GPT, GPTConfig
from optimizers import DTYPES, RECIPES

EVALUATION_WINDOWS, EVALUATION_BATCH = 256, 32
FINAL_SHARE = 20  # the mean of the last twentieth of the training losses is the final one


def note_signals() -> list[int]:
    """Return a list that gets the first Ctrl-C and the first SIGTERM; the next act as always."""
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        signal.signal(number, before[number])

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    return noted


class Run:
    """Model, optimizer and schedule of one recipe, with all that a resume needs.

    `history` is what the run has measured; its lists but `validation`, which has pairs of steps
    done and loss, have one entry per step.
    """

    def __init__(
        self, key: str, settings: dict[str, Any], corpus: Corpus, folder: Path, fresh: bool
    ) -> None:
        self.recipe, self.corpus, self.settings = RECIPES[key], corpus, SimpleNamespace(**settings)
        # Equal arguments find their run again, and other arguments never touch it.
        recipe = [self.recipe.label, self.recipe.lr, self.recipe.options]
        decisive = json.dumps([settings, recipe, corpus.digest], sort_keys=True)
        digest = hashlib.sha256(decisive.encode()).hexdigest()[:8]
        self.path = folder / f"{key}-{digest}.pt"
        self.evaluate_every = max(1, min(500, self.settings.steps // 10))
        names = ("train", "lr", "step_ms", "optimizer_ms", "validation")
        self.history: dict[str, list] = {name: [] for name in names}

        s = self.settings
        torch.manual_seed(s.seed)  # the same initial weights for every recipe
        self.model = GPT(GPTConfig(s.layers, s.width, s.heads, s.context))
        self.model.to(s.device, DTYPES[s.dtype])
        self.optimizer, schedule = self.recipe.build(self.model, s)
        self.parts = {"model": self.model, "optimizer": self.optimizer}
        if schedule:
            self.parts["scheduler"] = schedule
        if fresh:
            self.path.unlink(missing_ok=True)
        elif self.path.exists():
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            self.history = state["history"]

    @property
    def step(self) -> int:
        """How many steps are done. The place in the data is the seed and the step."""
        return len(self.history["train"])

    def save(self) -> None:
        """Write the checkpoint so that its file holds either all of it or what it held before."""
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save({**parts, "step": self.step, "history": self.history}, partial)
        partial.replace(self.path)

    def train(self, every: int, signals: list[int], show: Callable[[bool], None]) -> None:
        """Take the steps that are left; after a signal, save and return."""
        last = self.settings.steps
        while self.step < last and not signals:
            if self.step % self.evaluate_every == 0:
                self.evaluate(show)
            self.train_step()
            show(False)
            if self.step == last:
                self.evaluate(show)
            if signals or self.step % every == 0 or self.step == last:
                self.save()

    def train_step(self) -> None:
        """One batch, one update."""
        settings, started = self.settings, self.now()
        batch = self.corpus.batch(settings.seed, self.step, settings.batch, settings.context)
        loss = self.model(*(part.to(settings.device) for part in batch))
        loss.backward()
        before = self.now()
        self.optimizer.step()
        after = self.now()
        lr = float(self.optimizer.param_groups[0]["lr"])
        if "scheduler" in self.parts:
            self.parts["scheduler"].step()
        self.optimizer.zero_grad()
        times = {"optimizer_ms": 1e3 * (after - before), "step_ms": 1e3 * (self.now() - started)}
        for name, value in {"train": loss.item(), "lr": lr, **times}.items():
            self.history[name].append(value)

    @torch.no_grad()
    def evaluate(self, show: Callable[[bool], None]) -> None:
        """Measure the loss on the held-out files, once per step at most."""
        measured = self.history["validation"]
        if not measured or measured[-1][0] != self.step:
            inputs = self.corpus.evaluation(EVALUATION_WINDOWS, self.settings.context)
            parts = (part.to(self.settings.device).split(EVALUATION_BATCH) for part in inputs)
            loss = fmean(self.model(*pair).item() for pair in zip(*parts, strict=True))
            measured.append((self.step, loss))
            show(True)

    def now(self) -> float:
        """Seconds, once the device has caught up."""
        if self.settings.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def summary(self) -> dict[str, float]:
        """The row of the final table."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        held = sum(tensor.nbytes for tensor in state if isinstance(tensor, torch.Tensor))
        return {
            "parameters": parameters,
            "train_loss": fmean(self.history["train"][-max(1, self.step // FINAL_SHARE) :]),
            "validation_loss": self.history["validation"][-1][1],
            "ms_per_step": median(self.history["step_ms"]),
            "optimizer_ms_per_step": median(self.history["optimizer_ms"]),
            "state_bytes_per_parameter": held / parameters,
        }
