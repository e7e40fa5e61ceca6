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

    def __str__(self) -> str:
        return self.name

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
_MOMENTS = {"state_dtype": _BF16}
_DECAY = {"weight_decay": 0.01}
_CLIPS = {"max_grad_norm": MAX_GRAD_NORM}
_T5 = {"lr": 1e-3, "relative_step": False, "scale_parameter": False}
_MODES = ("nearest", "stochastic", "kahan", "split", "master")


def _setup(name: str, factory: str, dtypes: str = "fp32 bf16 fp16", **options: Any) -> Setup:
    """Return a setup; ``clips`` and ``one_pass`` are its own, all other options the optimizer's."""
    own = {key: options.pop(key, False) for key in ("clips", "one_pass")}
    op = next((op for op in ("adafactor", "lion") if op in factory.lower()), "adamw")
    source = "torch" if factory.startswith("bench") else factory.partition(":")[0].split(".")[0]
    return Setup(name, op, source, factory, options, tuple(dtypes.split()), **own)


def _own() -> list[Setup]:
    adamw, adafactor, compat = "fused_optim:AdamW", "fused_optim:Adafactor", OURS + ".torch_compat:"
    setups = [
        _setup("AdamW", adamw, **_DECAY),
        _setup("AdamW bf16-moments", adamw, "fp32 fp16", **_MOMENTS, **_DECAY),
        _setup("AdamW clipped", adamw, **_CLIPS, **_DECAY),
        _setup("AdamWeightDecay", "fused_optim:AdamWeightDecay", weight_decay_rate=0.01),
        _setup("Lion", "fused_optim:Lion", **_DECAY),
        _setup("torch_compat.AdamW", f"{compat}AdamW"),
        _setup("torch_compat.AdamW nearest", f"{compat}AdamW", "bf16", low_precision="nearest"),
        _setup("torch_compat.AdamW amsgrad", f"{compat}AdamW", amsgrad=True),
        _setup("torch_compat.AdamW clipped", f"{compat}AdamW", **_CLIPS),
        _setup("torch_compat.Adam", f"{compat}Adam"),
        _setup("torch_compat.Adafactor", f"{compat}Adafactor"),
        _setup("Adafactor", adafactor),
        _setup("Adafactor stochastic", adafactor, "bf16", low_precision="stochastic"),
        _setup("Adafactor clipped", adafactor, **_CLIPS),
        _setup("Adafactor T5", adafactor, **_T5),
        _setup("Adafactor beta1", adafactor, beta1=0.9),
        _setup("Adafactor beta1 bf16-moments", adafactor, beta1=0.9, **_MOMENTS),
    ]
    for mode in _MODES:
        kept = {"low_precision": mode}
        if mode != "split":  # what AdamW and Adafactor T5 are for bf16 parameters
            setups.append(_setup(f"AdamW {mode}", adamw, "bf16", **kept, **_DECAY))
            setups.append(_setup(f"Adafactor T5 {mode}", adafactor, "bf16", **_T5, **kept))
        name = f"AdamW {mode} bf16-moments"
        setups.append(_setup(name, adamw, "bf16", **_MOMENTS, **kept, **_DECAY))
    return setups


def _baselines() -> list[Setup]:
    adamw, adafactor = "torch.optim:AdamW", "torch.optim:Adafactor"
    theirs = "transformers.optimization:Adafactor"
    # In float16 eps is 0, and parameters become NaN, but for the fused ones.
    two, fused = "fp32 bf16", {"fused": True, "one_pass": True}
    clipped = {"fused": True, "clips": True}
    return [
        _setup("torch AdamW for-loop", adamw, two, foreach=False),
        _setup("torch AdamW foreach", adamw, two, foreach=True),
        _setup("torch AdamW fused", adamw, **fused),
        _setup("torch AdamW fused amsgrad", adamw, **fused, amsgrad=True),
        _setup("torch AdamW foreach clipped", adamw, two, foreach=True, clips=True),
        _setup("torch AdamW fused clipped", adamw, **clipped),
        _setup("torch Adam fused", "torch.optim:Adam", **fused),
        _setup("for-loop Lion", "bench.lion:ForLoopLion", two, **_DECAY),
        _setup("torch Adafactor", adafactor),
        _setup("torch Adafactor foreach", adafactor, foreach=True),
        _setup("transformers Adafactor", theirs),
        _setup("transformers Adafactor T5", theirs, **_T5),
        _setup("transformers Adafactor beta1", theirs, beta1=0.9),
        _setup("transformers Adafactor clipped", theirs, clips=True),
    ]


def _peers() -> list[Setup]:
    """Other packages. Their defaults, but for what a name says."""
    ao, bnb, flash = "torchao.optim", "bitsandbytes.optim", "flashoptim:FlashAdamW"
    engine, te = "TransformerEngine FusedAdam", "transformer_engine.pytorch.optimizers:FusedAdam"
    two, once = "fp32 bf16", {"one_pass": True}
    remainders = {"master_weights": True, "store_param_remainders": True}
    moments = {"exp_avg_dtype": _BF16, "exp_avg_sq_dtype": _BF16}
    full = {"quantize": False, "master_weight_bits": 32}
    return [
        _setup("optimi AdamW", "optimi:AdamW", two, lr=1e-3, **once),
        # torchao is compiled per tensor, and how often it passes over memory is inductor's affair.
        _setup("torchao AdamW8bit", f"{ao}:AdamW8bit", two),
        _setup("torchao AdamWFp8", f"{ao}:AdamWFp8", two),
        _setup("torchao AdamW stochastic", f"{ao}:_AdamW", "bf16", bf16_stochastic_round=True),
        _setup("bitsandbytes AdamW", f"{bnb}:AdamW32bit", two, **once),
        _setup("bitsandbytes Lion", f"{bnb}:Lion32bit", two, **once),
        _setup("bitsandbytes AdamW8bit", f"{bnb}:AdamW8bit", two, **once),
        _setup("FlashAdamW", flash, two, **once),
        _setup("FlashAdamW 32-bit", flash, "bf16", **full, **once),
        _setup("apex FusedAdam", "apex.optimizers:FusedAdam", two, **once),
        _setup(engine, te, two, **once),
        _setup(f"{engine} master", te, "bf16", master_weights=True, **once),
        _setup(f"{engine} remainders", te, "bf16", **remainders, **once),
        _setup(f"{engine} remainders bf16-moments", te, "bf16", **remainders, **moments, **once),
    ]


SETUPS: dict[str, Setup] = {s.name: s for s in (*_own(), *_baselines(), *_peers())}
"""Every setup by its name."""

PEERS = {name: name for name in "transformers torchao bitsandbytes flashoptim apex".split()}
PEERS |= {"optimi": "torch-optimi", "transformer_engine": "transformer_engine"}
"""The sources that are neither this package nor torch: module to distribution."""

SWEPT = tuple(
    (name, dtype)
    for names, dtype in (
        (("AdamW", "torch AdamW fused"), "fp32"),
        (("torch_compat.AdamW", "torch AdamW fused"), "bf16"),
        (("Adafactor", "transformers Adafactor", "torch Adafactor", "torch AdamW foreach"), "fp32"),
        (("Adafactor stochastic",), "bf16"),
    )
    for name in names
)
"""What is swept, with its dtype; the first seven where time is short."""

BEST_KNOWN = ("AdamW", "torch_compat.AdamW", "AdamW split bf16-moments", "AdamW stochastic")
BEST_KNOWN += ("torch AdamW fused", "torch AdamW foreach")
BEST_KNOWN += ("Adafactor", "Adafactor stochastic", "Adafactor T5", "Adafactor T5 stochastic")
BEST_KNOWN += ("torch Adafactor", "transformers Adafactor")
"""What pictures name first, and keep where there is no room for all."""


def named(name: str, texts: str | None) -> bool:
    """Return whether a name contains one of some texts, which commas separate; None is any."""
    return texts is None or any(text in name for text in texts.split(","))
