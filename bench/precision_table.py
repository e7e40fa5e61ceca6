"""Writes the figures of docs/precision.md: ``python -m bench.precision_table``.

Those of training come from the committed results of ``bench.precision``, those of memory from the
state of optimizers that make a step. A test holds the page equal to both.
"""

import json
from typing import Any

import torch

import fused_optim
from bench import ROOT, pages

PAGE = ROOT / "docs" / "precision.md"
RESULTS = ROOT / "bench" / "results" / "cpu-2core" / "precision_curves.json"

Run = dict[str, Any]

MODES = ("nearest", "stochastic", "kahan", "split", "master")
_ADAMW, _ADAFACTOR, _BF16 = fused_optim.AdamW, fused_optim.Adafactor, torch.bfloat16
MEMORY_COLUMNS: dict[str, tuple[type, dict[str, Any]]] = {
    "AdamW, float32 moments": (_ADAMW, {}),
    "float16 `exp_avg`": (_ADAMW, {"state_dtype": torch.float16}),
    "bfloat16 moments": (_ADAMW, {"state_dtype": _BF16}),
    "Adafactor": (_ADAFACTOR, {}),
    "`beta1`": (_ADAFACTOR, {"beta1": 0.9}),
    "`beta1`, bfloat16": (_ADAFACTOR, {"beta1": 0.9, "state_dtype": _BF16}),
}


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


def table(results: dict[str, Any]) -> str:
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


TABLES = {"training": lambda: table(json.loads(RESULTS.read_text())), "memory": memory_table}


def main(arguments: list[str] | None = None) -> None:
    pages.rewrite(PAGE, TABLES, __doc__, arguments)


if __name__ == "__main__":
    main()
