"""Checkpoints of shards: saved by two processes, loaded by any number, and the next step made."""

from __future__ import annotations

import functools
import warnings
from collections import ChainMap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from fsdp_shards import network, shard
from shards import placed, random, whole_of
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import fused_optim
from fused_optim import torch_compat

Make = Callable[..., torch.optim.Optimizer]
MAKES: dict[str, Make] = {
    "AdamW": functools.partial(fused_optim.AdamW, lr=1e-2, weight_decay=0.1),
    "stochastic": functools.partial(
        torch_compat.AdamW, lr=1e-2, low_precision="stochastic", state_dtype=torch.bfloat16
    ),
    "Adafactor": functools.partial(fused_optim.Adafactor, beta1=0.9),
}
OPTIONS = {
    "nested": {},
    "flat": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True, "cpu_offload": True},
    "async": {"flatten_optimizer_state_dict": True},
}
STEPS = (1, 2)


def set_gradients(model: nn.Module, step: int) -> None:
    """Set gradients that are the same however the parameters are split."""
    for i, param in enumerate(model.parameters()):
        if not param.requires_grad:
            continue
        grad = random(param.shape, 100 * step + i, param.dtype)
        if isinstance(param, DTensor):
            grad = placed(grad, ("mesh", param.placements), {"mesh": param.device_mesh})
        param.grad = grad


def train(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], steps: Any) -> None:
    for step in steps:
        set_gradients(model, step)
        for optimizer in optimizers:
            optimizer.step()


def parts_of(model: nn.Module) -> list[nn.Module]:
    """Two parts that are optimized by themselves, as the stages of a pipeline."""
    return [model[:2], model[2:]]


def build(
    make: Make, dtype: torch.dtype, by_part: bool, mesh: Any
) -> tuple[nn.Module, list[tuple[nn.Module, torch.optim.Optimizer]]]:
    model = shard(network(dtype), mesh=mesh) if mesh is not None else network(dtype)
    modules = parts_of(model) if by_part else [model]
    return model, [(module, make(module.parameters())) for module in modules]


def state_of(pairs: list, options: StateDictOptions) -> dict[str, Any]:
    """Return what is saved: torchtitan merges the flat dicts of all model parts."""
    found: dict[str, Any] = {}
    for number, (module, optimizer) in enumerate(pairs):
        prefix = "" if options.flatten_optimizer_state_dict else f"{number}"
        saved = get_optimizer_state_dict(module, optimizer, options=options)
        if prefix:
            found[prefix] = saved
        else:
            found.update({f"{number}.{key}": value for key, value in saved.items()})
    return found


def load_state(pairs: list, saved: dict[str, Any], options: StateDictOptions) -> None:
    for number, (module, optimizer) in enumerate(pairs):
        if options.flatten_optimizer_state_dict:
            start = f"{number}."
            mine = {k.removeprefix(start): v for k, v in saved.items() if k.startswith(start)}
        else:
            mine = saved[f"{number}"]
        set_optimizer_state_dict(module, optimizer, mine, options=options)


def cases() -> Iterable[tuple[str, Make, torch.dtype, str, bool]]:
    for number, (name, make) in enumerate(MAKES.items()):
        for turn, kind in enumerate(OPTIONS):
            by_part = (number + turn) % 2 == 1 and kind != "full"
            dtype = torch.float32 if kind == "async" else torch.bfloat16
            yield f"{name} {kind}", make, dtype, kind, by_part


def whole(model: nn.Module) -> list[torch.Tensor]:
    return [whole_of(p.detach()) for p in model.parameters()]


def save(folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Save after some steps, make one more, and return what the weights are then."""
    expected: dict[str, Any] = {}
    for name, make, dtype, kind, by_part in cases():
        model, pairs = build(make, dtype, by_part, known["line"])
        train(model, [optimizer for _, optimizer in pairs], STEPS)
        options = StateDictOptions(**OPTIONS[kind])
        saved = {"o": state_of(pairs, options), "m": get_model_state_dict(model, options=options)}
        if kind == "full":
            if dist.get_rank() == 0:
                torch.save(saved, folder / f"{name}.pt")
        elif kind == "async":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dcp.async_save(saved, checkpoint_id=folder / name).result()
        else:
            dcp.save(saved, checkpoint_id=folder / name)
        train(model, [optimizer for _, optimizer in pairs], [3])
        expected[name] = [w.clone() for w in whole(model)]
    return expected


def load(folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Load, make one more step, and return what the weights are then."""
    found: dict[str, Any] = {}
    for name, make, dtype, kind, by_part in cases():
        model, pairs = build(make, dtype, by_part, known.get("line"))
        with torch.no_grad():
            for param in model.parameters():
                param.zero_()
        options = StateDictOptions(**OPTIONS[kind])
        if kind == "full":
            loaded = torch.load(folder / f"{name}.pt", weights_only=True)
        else:
            loaded = {"o": state_of(pairs, options), "m": get_model_state_dict(model)}
            dcp.load(loaded, checkpoint_id=folder / name)
        load_state(pairs, loaded["o"], options)
        set_model_state_dict(model, loaded["m"], options=options)
        train(model, [optimizer for _, optimizer in pairs], [3])
        found[name] = [w.clone() for w in whole(model)]
    return found


def interchange(folder: Path, known: dict[str, Any], *, saves: bool) -> dict[str, Any]:
    """torch's own checkpoints, there and back; and a mode that is another at the load."""
    found: dict[str, Any] = {}
    pairs = {
        "to torch": (torch_compat.AdamW, torch.optim.AdamW),
        "from torch": (torch.optim.AdamW, torch_compat.AdamW),
        "Adam to torch": (torch_compat.Adam, torch.optim.Adam),
    }
    for name, makes in pairs.items():
        make = functools.partial(makes[0 if saves else 1], lr=1e-2)
        model, ours = build(make, torch.float32, False, known.get("line"))
        options = StateDictOptions()
        if saves:
            train(model, [ours[0][1]], STEPS)
        loaded = {"o": state_of(ours, options), "m": get_model_state_dict(model)}
        if saves:
            dcp.save(loaded, checkpoint_id=folder / name)
        else:
            dcp.load(loaded, checkpoint_id=folder / name)
            load_state(ours, loaded["o"], options)
            set_model_state_dict(model, loaded["m"])
        train(model, [ours[0][1]], [3])
        found[name] = [w.clone() for w in whole(model)]
    for mode in ("split", "master"):
        make = functools.partial(
            fused_optim.AdamW,
            lr=1e-2,
            low_precision=mode if saves else {"split": "master"}.get(mode, "split"),
        )
        model, ours = build(make, torch.bfloat16, False, known.get("line"))
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        if saves:
            train(model, [ours[0][1]], STEPS)
            saved = {
                "o": state_of(ours, options),
                "m": get_model_state_dict(model, options=options),
            }
            if dist.get_rank() == 0:
                torch.save(saved, folder / f"{mode}.pt")
        else:
            loaded = torch.load(folder / f"{mode}.pt", weights_only=True)
            ours[0][1].load_state_dict(_by_number(model, loaded["o"]["0"]))
            set_model_state_dict(model, loaded["m"], options=options)
        values = ours[0][1].fp32_state_dict(model).values()
        found[mode] = [whole_of(value) for value in values]
    return found


def eight_bits(folder: Path, known: dict[str, Any], *, saves: bool) -> dict[str, Any]:
    """Moments in 8 bits, whose blocks lie in rows: split otherwise, they are the same blocks."""
    torch.manual_seed(0)
    layers = [nn.Linear(256, 48, bias=False), nn.Linear(512, 33, bias=False)]
    model = nn.Sequential(*layers).to(torch.bfloat16)
    if known:
        fully_shard(model, mesh=known["line"])
    optimizer = fused_optim.AdamW(model.parameters(), lr=1e-2, state_dtype="int8")
    pairs, options = [(model, optimizer)], StateDictOptions(flatten_optimizer_state_dict=True)
    if saves:
        train(model, [optimizer], STEPS)
    loaded = {"o": state_of(pairs, options), "m": get_model_state_dict(model)}
    if saves:
        dcp.save(loaded, checkpoint_id=folder / "8 bits")
    else:
        dcp.load(loaded, checkpoint_id=folder / "8 bits")
        load_state(pairs, loaded["o"], options)
        set_model_state_dict(model, loaded["m"])
    train(model, [optimizer], [3])
    dtypes = {str(state["exp_avg"].dtype) for state in optimizer.state.values()}
    return {"8 bits": [w.clone() for w in whole(model)] if dtypes == {"torch.uint8"} else dtypes}


def _by_number(model: nn.Module, saved: dict[str, Any]) -> dict[str, Any]:
    """Return a full state dict by parameter number, as an optimizer's own is."""
    numbers = {name: number for number, (name, _) in enumerate(model.named_parameters())}
    groups = [{**group, "params": list(numbers.values())} for group in saved["param_groups"]]
    return {
        "state": {numbers[name]: state for name, state in saved["state"].items()},
        "param_groups": groups,
    }


def checkpoints(folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    """Two processes save, others load."""
    saves = dist.is_initialized() and dist.get_world_size() == 2
    weights = save(folder, known) if saves else load(folder, known)
    more = (make(folder, known, saves=saves) for make in (interchange, eight_bits))
    return {**weights, **dict(ChainMap(*more))}
