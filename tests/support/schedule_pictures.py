"""Draws the schedules of docs/schedules.md: ``python tests/support/schedule_pictures.py``.

Every picture is what a schedule of `fused_optim` writes into an optimizer's learning rate, step by
step. The files are small SVGs, drawn without a library, so that they are equal on every machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

import fused_optim

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "images" / "schedules"
STEPS, WARMUP = 100, 10
STRIDE = 200  # of the steps that Adafactor's picture shows
WIDTH, HEIGHT, LEFT, BOTTOM, MARGIN = 360, 170, 34, 40, 8
INK, GRID = "#8a8f98", "#8a8f9855"
COLORS = ("#3b6fe0", "#e8590c", "#0b8f6a")

Rates = list[float]


def rates_of(make: Callable[[Any], Any], metrics: Iterable[float] = ()) -> Rates:
    """Return the learning rate of each of `STEPS` steps, of which the base rate is 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = make(optimizer)
    waiting, rates = list(metrics), []
    for number in range(STEPS + 1):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step(*waiting[number : number + 1])
    return rates


def named(name: str, **kwargs: Any) -> Rates:
    """Return the rates of the schedule that `get_scheduler` knows by this name."""
    return rates_of(lambda o: fused_optim.get_scheduler(name, o, WARMUP, STEPS, kwargs))


def of_a_metric(name: str, **kwargs: Any) -> Rates:
    """Return the rates for a loss that falls for 40 steps, then stays."""
    losses = [max(1.0 - step / 40, 0.0) for step in range(STEPS + 1)]
    return rates_of(lambda o: fused_optim.get_scheduler(name, o, None, None, kwargs), losses)


def relative_step(**options: Any) -> Rates:
    """Return what Adafactor makes of its own schedule, at every `STRIDE`-th step."""
    param = torch.nn.Parameter(torch.ones(2, 2))
    param.grad = torch.ones_like(param)
    optimizer = fused_optim.Adafactor([param], scale_parameter=False, **options)
    schedule, rates = fused_optim.AdafactorSchedule(optimizer), []
    for number in range(2 * STEPS + 1):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
        optimizer.state[param]["step"] = STRIDE * (number + 1) - 1
    return rates


PICTURES: dict[str, Callable[[], dict[str, Rates]]] = {
    "constant": lambda: {"constant": named("constant")},
    "constant_with_warmup": lambda: {
        "": named("constant_with_warmup"),
        "warmup_start_ratio=0.3": named("constant_with_warmup", warmup_start_ratio=0.3),
    },
    "linear": lambda: {"": named("linear")},
    "cosine": lambda: {"": named("cosine"), "num_cycles=1.5": named("cosine", num_cycles=1.5)},
    "cosine_with_restarts": lambda: {"num_cycles=3": named("cosine_with_restarts", num_cycles=3)},
    "cosine_with_min_lr": lambda: {
        "min_lr_rate=0.1": named("cosine_with_min_lr", min_lr_rate=0.1),
        "cosine_warmup_with_min_lr": named("cosine_warmup_with_min_lr", min_lr_rate=0.1),
    },
    "polynomial": lambda: {
        "power=1": named("polynomial"),
        "power=2": named("polynomial", power=2.0),
        "power=0.5": named("polynomial", power=0.5),
    },
    "inverse_sqrt": lambda: {
        "": named("inverse_sqrt"),
        "timescale=3": named("inverse_sqrt", timescale=3),
    },
    "warmup_stable_decay": lambda: {
        "cosine": named("warmup_stable_decay", num_decay_steps=30),
        "linear": named("warmup_stable_decay", num_decay_steps=30, decay_type="linear"),
        "1-sqrt": named("warmup_stable_decay", num_decay_steps=30, decay_type="1-sqrt"),
    },
    "reduce_lr_on_plateau": lambda: {
        "patience=8": of_a_metric("reduce_lr_on_plateau", factor=0.5, patience=8)
    },
    "greedy": lambda: {
        "patience=8": of_a_metric("greedy", factor=0.8, patience=8, max_lr=4.0, min_lr=0.1)
    },
    "adafactor": lambda: {
        "relative_step": relative_step(),
        "warmup_init": relative_step(warmup_init=True),
    },
}


def picture(lines: dict[str, Rates], stride: int = 1) -> str:
    """Return an SVG of the rates over the steps, of which every ``stride``-th has a rate."""
    top = max(max(rates) for rates in lines.values())
    steps = len(next(iter(lines.values()))) - 1
    right, floor = WIDTH - MARGIN, HEIGHT - BOTTOM

    def x(step: float) -> str:
        return f"{LEFT + (right - LEFT) * step / steps:.1f}"

    def y(rate: float) -> str:
        return f"{floor - (floor - MARGIN) * rate / top:.1f}"

    font = f'font-family="sans-serif" font-size="10" fill="{INK}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">'
    ]
    for share in (0.0, 0.5, 1.0):
        at = y(share * top)
        parts.append(f'<path d="M{LEFT} {at}H{right}" stroke="{GRID}"/>')
        label = f"{share * top:.3g}"
        parts.append(
            f'<text x="{LEFT - 4}" y="{at}" dy="3" text-anchor="end" {font}>{label}</text>'
        )
    for step in (0, steps // 2, steps):
        at = f'x="{x(step)}" y="{floor + 14}" text-anchor="{"end" if step == steps else "middle"}"'
        parts.append(f"<text {at} {font}>{stride * step}</text>")
    for number, (label, rates) in enumerate(lines.items()):
        color, shown = COLORS[number], range(0, steps + 1, max(1, steps // 200))
        points = " ".join(f"{x(step)},{y(rates[step])}" for step in shown)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.8"/>'
        )
        at = f'x="{LEFT + number * (right - LEFT) // 3}" y="{HEIGHT - 6}"'
        parts.append(f"<text {at} {font.replace(INK, color)}>{label or 'default'}</text>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def drawn(name: str) -> str:
    """Return the content of a picture's file."""
    return picture(PICTURES[name](), STRIDE if name == "adafactor" else 1)


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__).parse_args(arguments)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        (FOLDER / f"{name}.svg").write_text(drawn(name))


if __name__ == "__main__":
    main()
