"""One optimizer's training run: built alike every time, resumable at every step."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, Protocol

import checkpoint
import torch
from corpus import Corpus
from gpt import GPT
from optimizers import Recipe
from settings import Settings
from torch import Tensor

EVALUATION_WINDOWS = 256
EVALUATION_BATCH = 32


@dataclass
class StopRequest:
    """The signal that asked the run to stop, if one did."""

    signum: int | None = None


@contextmanager
def deferred_signals() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C or SIGTERM into a request; the next one acts as always."""
    request = StopRequest()
    previous = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for signum, handler in previous.items():
            signal.signal(signum, handler)

    def note(signum: int, frame: Any) -> None:
        request.signum = signum
        restore()

    for signum in previous:
        signal.signal(signum, note)
    try:
        yield request
    finally:
        restore()


@dataclass
class History:
    """What a run has measured so far; the lists but `validation` have one entry per step."""

    train: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    optimizer_ms: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)  # (steps done, loss)


class Watcher(Protocol):
    """Whoever shows the progress."""

    def stepped(self, history: History) -> None:
        """A step is done."""

    def evaluated(self, history: History) -> None:
        """A validation loss was added."""


class Run:
    """Model, optimizer and schedule of one recipe, with all that a resume needs."""

    def __init__(self, recipe: Recipe, settings: Settings, corpus: Corpus, path: Path) -> None:
        """Build the initial state, the same weights for every recipe."""
        torch.manual_seed(settings.seed)
        self.recipe, self.settings, self.corpus, self.path = recipe, settings, corpus, path
        self.model = GPT(settings.model).to(settings.device, settings.parameter_dtype)
        self.optimizer, self.scheduler = recipe.build(self.model, recipe, settings)
        self.history = History()
        self.evaluate_every = max(1, min(500, settings.steps // 10))

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self.history.train)

    @property
    def done(self) -> bool:
        """Whether nothing is left to train."""
        return self.step >= self.settings.steps

    def save(self) -> None:
        """Write the checkpoint. The place in the data is the seed and the step."""
        state = {
            "step": self.step,
            "seed": self.settings.seed,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "random": checkpoint.random_state(),
            "history": asdict(self.history),
        }
        checkpoint.save(state, self.path)

    def resume(self) -> bool:
        """Continue from the checkpoint, if there is one."""
        state = checkpoint.load(self.path)
        if state is None:
            return False
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        checkpoint.restore_random_state(state["random"])
        self.history = History(**state["history"])
        return True

    def train(self, checkpoint_every: int, stop: StopRequest, watcher: Watcher) -> None:
        """Take the steps that are left."""
        while not self.done:
            if self.step % self.evaluate_every == 0:
                self.evaluate(watcher)
            self.train_step()
            watcher.stepped(self.history)
            if self.done:
                self.evaluate(watcher)
            signum = stop.signum  # read once: it may be set between two lines
            if self.done or signum or self.step % checkpoint_every == 0:
                self.save()
            if signum:
                raise Stopped(self, signum)

    def train_step(self) -> None:
        """One batch, one update."""
        settings, history = self.settings, self.history
        started = self.now()
        batch = self.corpus.batch(settings.seed, self.step, settings.batch, settings.context)
        tokens, targets = (part.to(settings.device) for part in batch)
        loss = self.model(tokens, targets)
        loss.backward()
        before = self.now()
        self.optimizer.step()
        after = self.now()
        lr = self.optimizer.param_groups[0]["lr"]
        if self.scheduler:
            self.scheduler.step()
        self.optimizer.zero_grad()
        history.train.append(loss.item())
        history.lr.append(float(lr))
        history.optimizer_ms.append(1e3 * (after - before))
        history.step_ms.append(1e3 * (self.now() - started))

    @torch.no_grad()
    def evaluate(self, watcher: Watcher) -> None:
        """Measure the loss on the held-out files, once per step at most."""
        if self.history.validation and self.history.validation[-1][0] == self.step:
            return
        inputs = self.corpus.evaluation(EVALUATION_WINDOWS, self.settings.context)
        parts = zip(*(part.split(EVALUATION_BATCH) for part in inputs), strict=True)
        loss = fmean(self.model(*map(self.to_device, pair)).item() for pair in parts)
        self.history.validation.append((self.step, loss))
        watcher.evaluated(self.history)

    def to_device(self, tensor: Tensor) -> Tensor:
        """Move data to where the model is."""
        return tensor.to(self.settings.device)

    def now(self) -> float:
        """Seconds, once the device has caught up."""
        if self.settings.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    def summary(self) -> dict[str, float]:
        """The row of the final table."""
        history, tail = self.history, self.settings.final_steps
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        state = [v for values in self.optimizer.state.values() for v in values.values()]
        return {
            "parameters": parameters,
            "train_loss": fmean(history.train[-tail:]),
            "validation_loss": history.validation[-1][1],
            "ms_per_step": median(history.step_ms),
            "optimizer_ms_per_step": median(history.optimizer_ms),
            "state_bytes_per_parameter": sum(
                tensor.nbytes for tensor in state if isinstance(tensor, Tensor)
            ) / parameters,
        }  # fmt: skip


class Stopped(Exception):
    """A signal ended `run`, and its checkpoint is written."""

    def __init__(self, run: Run, signum: int) -> None:
        super().__init__(run, signum)
        self.run, self.signum = run, signum
