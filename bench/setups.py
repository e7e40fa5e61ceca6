"""What is measured: optimizers of this package, of torch and transformers, and of the peers.

A setup is an optimizer as a user would construct it. It is imported where it is built, so that a
peer that is not installed is a reason in the results, and nothing more.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

OURS = "fused_optim"  # The source of the setups that every other is measured against

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Dtypes of parameters and gradients, by the name that results carry."""

MAX_GRAD_NORM = 1.0  # To which the clipped setups clip


@dataclass(frozen=True)
class Setup:
    name: str
    op: str  # a name of fused_optim.ops.FAMILIES
    source: str  # the package it comes from, as pip's users know it
    factory: str  # module:class
    options: dict[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("fp32",)
    clips: bool = False  # gradients, by clip_grad_norm_ before the step
    # Whether a peer's step reads and writes parameters and state once and reads gradients once, so
    # that its traffic follows from its state. This package's is counted.
    one_pass: bool = False

    def optimizer(
        self, params: Sequence[torch.nn.Parameter], backend: str | None = None
    ) -> torch.optim.Optimizer:
        """Construct the optimizer; ``backend`` is for this package's own."""
        module, name = self.factory.split(":")
        cls = getattr(importlib.import_module(module), name)
        options = dict(self.options)
        if self.source == OURS and backend is not None:
            options["backend"] = backend
        return cls(list(params), **options)


_BF16 = torch.bfloat16
_ALL = ("fp32", "bf16", "fp16")
_T5 = {"lr": 1e-3, "relative_step": False, "scale_parameter": False}
_MODES = ("nearest", "stochastic", "kahan", "split", "master")


def _own() -> list[Setup]:
    def own(name: str, factory: str, dtypes: tuple[str, ...] = _ALL, **options: Any) -> Setup:
        op = next((name for name in ("adafactor", "lion") if name in factory.lower()), "adamw")
        return Setup(name, op, OURS, factory, options, dtypes)

    adamw, adafactor = "fused_optim:AdamW", "fused_optim:Adafactor"
    torch_adamw = "fused_optim.torch_compat:AdamW"
    decay = {"weight_decay": 0.01}
    setups = [
        own("AdamW", adamw, **decay),
        own("AdamW bf16-moments", adamw, ("fp32", "fp16"), state_dtype=_BF16, **decay),
        own("AdamW clipped", adamw, max_grad_norm=MAX_GRAD_NORM, **decay),
        own("AdamWeightDecay", "fused_optim:AdamWeightDecay", weight_decay_rate=0.01),
        own("Lion", "fused_optim:Lion", **decay),
        own("torch_compat.AdamW", torch_adamw),
        own("torch_compat.AdamW nearest", torch_adamw, ("bf16",), low_precision="nearest"),
        own("torch_compat.AdamW amsgrad", torch_adamw, amsgrad=True),
        own("torch_compat.AdamW clipped", torch_adamw, max_grad_norm=MAX_GRAD_NORM),
        own("torch_compat.Adam", "fused_optim.torch_compat:Adam"),
        own("torch_compat.Adafactor", "fused_optim.torch_compat:Adafactor"),
        own("Adafactor", adafactor),
        own("Adafactor stochastic", adafactor, ("bf16",), low_precision="stochastic"),
        own("Adafactor clipped", adafactor, max_grad_norm=MAX_GRAD_NORM),
        own("Adafactor T5", adafactor, **_T5),
        own("Adafactor beta1", adafactor, beta1=0.9),
        own("Adafactor beta1 bf16-moments", adafactor, beta1=0.9, state_dtype=_BF16),
    ]
    for mode in _MODES:
        options = {"low_precision": mode, **decay}
        if mode != "split":  # what AdamW and Adafactor T5 are for bf16 parameters
            setups.append(own(f"AdamW {mode}", adamw, ("bf16",), **options))
            t5 = {**_T5, "low_precision": mode}
            setups.append(own(f"Adafactor T5 {mode}", adafactor, ("bf16",), **t5))
        name = f"AdamW {mode} bf16-moments"
        setups.append(own(name, adamw, ("bf16",), state_dtype=_BF16, **options))
    return setups


def _baselines() -> list[Setup]:
    def adam(name: str, cls: str = "AdamW", clips: bool = False, **options: bool) -> Setup:
        fused = "fused" in options
        dtypes = _ALL if fused else _ALL[:2]  # eps is 0 in float16, and parameters become NaN
        factory, one_pass = f"torch.optim:{cls}", fused and not clips
        return Setup(name, "adamw", "torch", factory, options, dtypes, clips, one_pass)

    def adafactor(name: str, clips: bool = False, **options: Any) -> Setup:
        return Setup(name, "adafactor", "torch", "torch.optim:Adafactor", options, _ALL, clips)

    def transformers(name: str, clips: bool = False, **options: Any) -> Setup:
        factory = "transformers.optimization:Adafactor"
        return Setup(name, "adafactor", "transformers", factory, options, _ALL, clips)

    decay = {"weight_decay": 0.01}
    return [
        adam("torch AdamW for-loop", foreach=False),
        adam("torch AdamW foreach", foreach=True),
        adam("torch AdamW fused", fused=True),
        adam("torch AdamW fused amsgrad", fused=True, amsgrad=True),
        adam("torch AdamW foreach clipped", foreach=True, clips=True),
        adam("torch AdamW fused clipped", fused=True, clips=True),
        adam("torch Adam fused", "Adam", fused=True),
        Setup("for-loop Lion", "lion", "torch", "bench.lion:ForLoopLion", decay, _ALL[:2]),
        adafactor("torch Adafactor"),
        adafactor("torch Adafactor foreach", foreach=True),
        transformers("transformers Adafactor"),
        transformers("transformers Adafactor T5", **_T5),
        transformers("transformers Adafactor beta1", beta1=0.9),
        transformers("transformers Adafactor clipped", clips=True),
    ]


def _peer(name: str, source: str, factory: str, dtypes: str = "fp32 bf16", **options: Any) -> Setup:
    # torchao is compiled per tensor, and how often it passes over memory is inductor's affair.
    one_pass = source != "torchao"
    op = "lion" if "Lion" in name else "adamw"
    return Setup(name, op, source, factory, options, tuple(dtypes.split()), False, one_pass)


def _peers() -> list[Setup]:
    """Other packages. Their defaults, but for what a name says."""
    ao, bnb, flash = "torchao.optim", "bitsandbytes.optim", "flashoptim:FlashAdamW"
    rounds = {"bf16_stochastic_round": True}
    full = {"quantize": False, "master_weight_bits": 32}
    return [
        _peer("optimi AdamW", "optimi", "optimi:AdamW", lr=1e-3),
        _peer("torchao AdamW8bit", "torchao", f"{ao}:AdamW8bit"),
        _peer("torchao AdamWFp8", "torchao", f"{ao}:AdamWFp8"),
        _peer("torchao AdamW stochastic", "torchao", f"{ao}:_AdamW", "bf16", **rounds),
        _peer("bitsandbytes AdamW", "bitsandbytes", f"{bnb}:AdamW32bit"),
        _peer("bitsandbytes Lion", "bitsandbytes", f"{bnb}:Lion32bit"),
        _peer("bitsandbytes AdamW8bit", "bitsandbytes", f"{bnb}:AdamW8bit"),
        _peer("FlashAdamW", "flashoptim", flash),
        _peer("FlashAdamW 32-bit", "flashoptim", flash, "bf16", **full),
        _peer("apex FusedAdam", "apex", "apex.optimizers:FusedAdam"),
        *_transformer_engine(),
    ]


def _transformer_engine() -> list[Setup]:
    def engine(name: str, dtypes: str, **options: Any) -> Setup:
        factory = "transformer_engine.pytorch.optimizers:FusedAdam"
        full = f"TransformerEngine FusedAdam {name}".rstrip()
        return _peer(full, "transformer_engine", factory, dtypes, **options)

    remainders = {"master_weights": True, "store_param_remainders": True}
    moments = {"exp_avg_dtype": _BF16, "exp_avg_sq_dtype": _BF16}
    return [
        engine("", "fp32 bf16"),
        engine("master", "bf16", master_weights=True),
        engine("remainders", "bf16", **remainders),
        engine("remainders bf16-moments", "bf16", **remainders, **moments),
    ]


SETUPS: dict[str, Setup] = {s.name: s for s in (*_own(), *_baselines(), *_peers())}
"""Every setup by its name."""

PEERS: dict[str, str] = {
    "transformers": "transformers",
    "optimi": "torch-optimi",
    "torchao": "torchao",
    "bitsandbytes": "bitsandbytes",
    "flashoptim": "flashoptim",
    "apex": "apex",
    "transformer_engine": "transformer_engine",
}
"""The sources that are neither this package nor torch: module to distribution."""

BEST_KNOWN = ("AdamW", "torch_compat.AdamW", "AdamW split bf16-moments", "AdamW stochastic")
BEST_KNOWN += ("torch AdamW fused", "torch AdamW foreach")
BEST_KNOWN += ("Adafactor", "Adafactor stochastic", "Adafactor T5", "Adafactor T5 stochastic")
BEST_KNOWN += ("torch Adafactor", "transformers Adafactor")
"""What pictures name first, and keep where there is no room for all."""


def named(name: str, texts: str | None) -> bool:
    """Return whether a name contains one of some texts, which commas separate; None is any."""
    return texts is None or any(text in name for text in texts.split(","))
