"""Writes the figures of docs/precision.md: ``python -m bench.precision_table``.

Those of training come from the committed results of ``bench.precision``, those of memory from the
state of optimizers that make a step. A test holds the page equal to both.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch

import fused_optim

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "precision.md"
RESULTS = ROOT / "bench" / "results" / "cpu-2core" / "precision_curves.json"

Run = dict[str, Any]

MODES = ("nearest", "stochastic", "kahan", "split", "master")
MEMORY_COLUMNS: list[tuple[str, type, dict[str, Any]]] = [
    ("AdamW, float32 moments", fused_optim.AdamW, {}),
    ("float16 `exp_avg`", fused_optim.AdamW, {"state_dtype": torch.float16}),
    ("bfloat16 moments", fused_optim.AdamW, {"state_dtype": torch.bfloat16}),
    ("Adafactor", fused_optim.Adafactor, {}),
    ("`beta1`", fused_optim.Adafactor, {"beta1": 0.9}),
    ("`beta1`, bfloat16", fused_optim.Adafactor, {"beta1": 0.9, "state_dtype": torch.bfloat16}),
]


def span(results: dict[str, Any], family: str) -> tuple[float, float]:
    """Return the least and the greatest final loss of a family's float32 runs."""
    losses = [run["final_loss"] for run in _of(results, family) if run["dtype"] == "float32"]
    return min(losses), max(losses)


def learns(results: dict[str, Any], run: Run) -> bool:
    """Whether a run ended within the span of the float32 runs of its family."""
    low, high = span(results, run["optimizer"])
    return low <= run["final_loss"] <= high


def same_seed(results: dict[str, Any], run: Run) -> float:
    """Return the final loss of the float32 run on the same batches, from the same weights."""
    return next(
        other["final_loss"]
        for other in _of(results, run["optimizer"])
        if other["dtype"] == "float32" and other["seed"] == run["seed"]
    )


def _of(results: dict[str, Any], family: str) -> list[Run]:
    return [run for run in results["runs"] if run["optimizer"] == family]


def table(results: dict[str, Any]) -> str:
    """Return the Markdown table of a result file, with the sentence above it."""
    settings, machine = results["settings"], results["machine"]
    parts = [
        f"{settings['layers']} layers of width {settings['width']}, {settings['steps']:,} steps of "
        f"{settings['batch']} x {settings['context']} bytes, torch {machine['torch']} on a CPU. "
        "Losses are in nats per byte of held-out files; bytes are per parameter, itself included.",
        "",
        "| run | bytes | final loss | less float32's, same seed | within float32's seeds |",
        "| --- | --- | --- | --- | --- |",
    ]
    for family in dict.fromkeys(run["optimizer"] for run in results["runs"]):
        low, high = span(results, family)
        runs = _of(results, family)
        reference = [run for run in runs if run["dtype"] == "float32"]
        name, size = reference[0]["name"], reference[0]["bytes_per_parameter"]
        parts.append(f"| {name}, {len(reference)} seeds | {size:g} | {low:.3f} to {high:.3f} | | |")
        for run in runs:
            if run["dtype"] != "float32":
                difference = run["final_loss"] - same_seed(results, run)
                verdict = "yes" if learns(results, run) else "**no**"
                parts.append(
                    f"| {run['name']} | {run['bytes_per_parameter']:g} | {run['final_loss']:.3f} "
                    f"| {difference:+.3f} | {verdict} |"
                )
    return "\n".join(parts) + "\n"


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
    """Return the Markdown table of bytes per parameter in every mode."""
    lines = [
        "| parameter, `low_precision` | "
        + " | ".join(name for name, _, _ in MEMORY_COLUMNS)
        + " |",
        "| --- " * (1 + len(MEMORY_COLUMNS)) + "|",
    ]
    rows = [("float32", "auto"), *(("bfloat16", mode) for mode in MODES)]
    rows += [("float16", mode) for mode in MODES if mode != "split"]
    for dtype, mode in rows:
        cells = [
            stored_bytes(cls, {**options, "low_precision": mode}, getattr(torch, dtype))
            for _, cls, options in MEMORY_COLUMNS
        ]
        name = dtype if mode == "auto" else f"{dtype}, `{mode}`"
        lines.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def with_figures(page: str, results: dict[str, Any]) -> str:
    """Return ``page`` with both tables in their places."""
    for block, text in (("training", table(results)), ("memory", memory_table())):
        place = rf"(?<=<!-- {block}:begin -->\n).*(?=<!-- {block}:end -->)"
        page = re.sub(place, lambda _, text=text: text, page, flags=re.DOTALL)
    return page


def main(arguments: list[str] | None = None) -> None:
    """Bring the page up to the results."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.precision_table")
    parser.parse_args(arguments)
    PAGE.write_text(with_figures(PAGE.read_text(), json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
