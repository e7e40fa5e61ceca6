"""The tables of docs/precision.md: ``python tests/support/precision_page.py`` writes them.

Those of training come from the committed results of ``examples/demo/precision.py``. Bytes are
counted in the state of optimizers that make a step. How small an update each precision mode keeps
is measured: weights of several sizes and both signs are given hundreds to thousands of updates by
the optimizer itself, and how far each has gone is compared with the sum of its updates.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import bench_package  # noqa: F401
import torch
import written_pages

import fused_optim
from bench import pages

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "precision.md"
RESULTS = ROOT / "bench" / "results" / "cpu-2core" / "precision_curves.json"
Run = dict[str, Any]

# --- training -------------------------------------------------------------------------------------


def references(results: dict[str, Any], family: str) -> list[Run]:
    runs = [run for run in results["runs"] if run["optimizer"] == family]
    return [run for run in runs if run["dtype"] == "float32"]


def span(results: dict[str, Any], family: str) -> tuple[float, float]:
    losses = [run["final_loss"] for run in references(results, family)]
    return min(losses), max(losses)


def same_seed(results: dict[str, Any], run: Run) -> float:
    """Return the final loss of the float32 run on the same batches, from the same weights."""
    seeds = {other["seed"]: other for other in references(results, run["optimizer"])}
    return seeds[run["seed"]]["final_loss"]


def training_table(results: dict[str, Any]) -> str:
    settings, machine, rows = results["settings"], results["machine"], []
    for family in dict.fromkeys(run["optimizer"] for run in results["runs"]):
        seeds, (low, high) = references(results, family), span(results, family)
        name, size = seeds[0]["name"], seeds[0]["bytes_per_parameter"]
        rows.append(
            (f"{name}, {len(seeds)} seeds", f"{size:g}", f"{low:.3f} to {high:.3f}", "", "")
        )
        for run in results["runs"]:
            if run["optimizer"] == family and run["dtype"] != "float32":
                loss, size = run["final_loss"], run["bytes_per_parameter"]
                difference = f"{loss - same_seed(results, run):+.3f}"
                verdict = "yes" if low <= loss <= high else "**no**"
                rows.append((run["name"], f"{size:g}", f"{loss:.3f}", difference, verdict))
    head = ("run", "bytes", "final loss", "less float32's, same seed", "within float32's seeds")
    return (
        f"{settings['layers']} layers of width {settings['width']}, {settings['steps']:,} steps of "
        f"{settings['batch']} x {settings['context']} bytes, torch {machine['torch']} on a CPU. "
        "Losses are in nats per byte of held-out files; bytes are per parameter, itself included."
        f"\n\n{pages.markdown(head, rows)}"
    )


# --- memory ---------------------------------------------------------------------------------------

MODES = ("nearest", "stochastic", "kahan", "split", "master")
_ADAMW, _ADAFACTOR, _BF16 = fused_optim.AdamW, fused_optim.Adafactor, torch.bfloat16
MEMORY_COLUMNS: dict[str, tuple[type, dict[str, Any]]] = {
    "AdamW, float32 moments": (_ADAMW, {}),
    "float16 `exp_avg`": (_ADAMW, {"state_dtype": torch.float16}),
    "bfloat16 moments": (_ADAMW, {"state_dtype": _BF16}),
    "8-bit moments": (_ADAMW, {"state_dtype": "int8"}),
    "Adafactor": (_ADAFACTOR, {}),
    "`beta1`": (_ADAFACTOR, {"beta1": 0.9}),
    "`beta1`, bfloat16": (_ADAFACTOR, {"beta1": 0.9, "state_dtype": _BF16}),
}


def stored_bytes(optimizer: type, options: dict[str, Any], dtype: torch.dtype) -> int:
    """Return the bytes per parameter of a large matrix and its state, after a step.

    What is less than a byte is left out: Adafactor's row and column statistics, scalars.
    """
    param = torch.nn.Parameter(torch.ones(64, 64, dtype=dtype))
    param.grad = torch.ones_like(param)
    made = optimizer([param], **options)
    made.step()
    tensors = [param, *(t for t in made.state[param].values() if isinstance(t, torch.Tensor))]
    return sum(t.untyped_storage().nbytes() for t in tensors) // param.numel()


def memory_table() -> str:
    cases = [("float32", "auto"), *(("bfloat16", mode) for mode in MODES)]
    cases += [("float16", mode) for mode in MODES if mode != "split"]
    rows = []
    for name, mode in cases:
        cells = [
            stored_bytes(cls, {**options, "low_precision": mode}, getattr(torch, name))
            for cls, options in MEMORY_COLUMNS.values()
        ]
        rows.append((name if mode == "auto" else f"{name}, `{mode}`", *cells))
    return pages.markdown(("parameter, `low_precision`", *MEMORY_COLUMNS), rows)


# --- kept updates ---------------------------------------------------------------------------------

# Both ends of a power of two and between, and other powers. bfloat16 holds them exactly.
WEIGHTS = (1.0, 1.25, 1.5, 1.9921875, -1.0, -1.25, -1.5, -1.9921875, 0.25, -48.0)

STEPS = {"nearest": 1024, "kahan": 4096, "split": 1024, "master": 1024}
"""Of each mode that adds the same updates up to the same value every time. What ``kahan`` keeps
depends on how far the weight has come towards its next value, which takes the longest."""

_COARSEST, _FINEST = 5, 25  # updates of 2^-5 to 2^-25 of a weight
_PER_OCTAVE = 8
_SPACINGS = 4  # of the dtype: as far as a weight is to go, if that takes fewer steps
_LEAST_STEPS = 16
_SCALE = 2.0**40


class Kept(NamedTuple):
    """The least updates of which enough is kept, each as the ``k`` of 2^-k of the weight.

    None where that takes updates of more than 2^-5 of the weight.
    """

    half: int | None  # constant updates add up to between half and one and a half of their sum
    constant: int | None  # constant updates add up to their sum within 1 %
    varying: int | None  # so do updates that vary from nothing to twice the size


class Drive:
    """A weight per element, that is given updates of one's own choice.

    AdamW moves a parameter by the gradient itself where neither moment has a memory, and where
    epsilon equals the learning rate and is so large that adding a gradient doesn't change it.
    """

    def __init__(self, weights: torch.Tensor, mode: str) -> None:
        self.param = torch.nn.Parameter(weights.clone())
        self.optimizer = fused_optim.AdamW(
            [self.param], lr=_SCALE, betas=(0.0, 0.0), eps=_SCALE, low_precision=mode
        )

    def step(self, updates: torch.Tensor) -> None:
        """Subtract float32 ``updates`` from the weights."""
        self.param.main_grad = updates
        self.optimizer.step()

    def value(self) -> torch.Tensor:
        """Return the weights with all that is kept of them, in float64."""
        model = torch.nn.ParameterList([self.param])
        return self.optimizer.fp32_state_dict(model)["0"].double()


def measure(dtype: torch.dtype, mode: str) -> Kept:
    constant, varying = (shares(dtype, mode) - 1.0).abs().amax(dim=1)  # of the worst weight
    return Kept(_least(constant, 0.5), _least(constant, 0.01), _least(varying, 0.01))


def shares(dtype: torch.dtype, mode: str) -> torch.Tensor:
    """Return how far each weight has gone, as a share of the sum of its updates.

    The result is [2 (constant, varying), weights, sizes]; sizes go down, eight an octave.
    """
    sizes = 2.0 ** -torch.arange(_COARSEST, _FINEST, 1 / _PER_OCTAVE)
    weights = torch.tensor(WEIGHTS)[None, :, None].expand(2, -1, len(sizes))
    updates = weights.abs() * sizes
    spacing = torch.finfo(dtype).eps * 2.0 ** weights.abs().log2().floor()
    counts = (_SPACINGS * spacing / updates).ceil().clamp(_LEAST_STEPS, STEPS[mode])
    drive, total = Drive(weights.to(dtype), mode), torch.zeros(weights.shape).double()
    source, factors = torch.Generator().manual_seed(0), torch.ones(weights.shape)
    for step in range(STEPS[mode]):
        factors[1] = 2.0 * torch.rand(factors[1].shape, generator=source)
        taken = torch.where(step < counts, updates * factors, 0.0)
        total += taken.double()
        drive.step(taken)
    return (weights.double() - drive.value()) / total


def _least(off: torch.Tensor, tolerance: float) -> int | None:
    """Return ``k`` of the least 2^-k from which on everything is off by at most ``tolerance``."""
    failed = (off > tolerance).nonzero()
    good = int(failed[0]) if len(failed) else len(off)
    return _COARSEST + (good - 1) // _PER_OCTAVE if good > _PER_OCTAVE else None


def power(k: int | None) -> str:
    return f"above 2^-{_COARSEST}" if k is None else f"2^-{k} ({2.0**-k:.1e})".replace("e-0", "e-")


def kept_table() -> str:
    """Return the table of all limits, measured now: it takes some seconds."""
    rows = [
        (f"{name}, `{mode}`", *map(power, measure(getattr(torch, name), mode)))
        for name in ("bfloat16", "float16")
        for mode in STEPS
        if (name, mode) != ("float16", "split")
    ]
    head = ("parameter, `low_precision`", "half, same size", "99 %, same size", "99 %, sizes vary")
    return pages.markdown(head, rows)


TABLES = {
    "training": lambda: training_table(json.loads(RESULTS.read_text())),
    "memory": memory_table,
    "kept": kept_table,
}


def main(arguments: list[str] | None = None) -> None:
    written_pages.rewrite(PAGE, TABLES, __doc__, arguments)


if __name__ == "__main__":
    main()
