"""Parameter groups with and without weight decay."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

_TORCH_NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
)

# The name of a norm that is not torch's ends in the word "norm": LlamaRMSNorm, GlobalResponseNorm,
# RMSNormGated, LayerNorm2d. Where another noun follows, the class is that: a LayerNormLinear, a
# LayerNormLSTMCell or a NormedEmbedding holds matrices that decay, and so does the layer whose
# weight a WeightNorm or a SpectralNorm normalizes.
_NORM_NAME = re.compile(
    r"((?<!Weight)(?<!Spectral)Norm(ali[sz]ation)?|(^|(?i:layer|rms|batch|group|instance)_?)norm)"
    r"(_?(\d+[a-zA-Z]?|Nd|Act|Gated|PerHead|Fp32|FP32))*$"
)


def param_groups_weight_decay(
    model: nn.Module, weight_decay: float, no_decay: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Return at most two groups: the parameters that decay, and those that don't.

    Parameters of fewer than two dimensions (biases, gains of norms), parameters of norm modules
    and those named ``bias`` do not decay. A norm is a module of one of torch's norm classes, or of
    a class whose name ends in the word "norm", as ``LlamaRMSNorm``, ``RMSNormGated`` and
    ``LayerNorm2d`` do, and ``NormalizingFlow`` and ``NormedEmbedding`` do not. Parameters that need
    no gradient are left out, tied ones are listed once, a group without parameters is dropped.

    Args:
        model: the model.
        weight_decay: of the group that decays.
        no_decay: more parameters that do not decay: a list of names of parameters, or of modules
            with all that they hold. The front of a name may be left out, up to a dot:
            ``"wte.weight"`` is also ``"transformer.wte.weight"``, and ``"wte"`` is everything in
            ``"transformer.wte"``.

    Returns:
        Groups with the keys ``params``, ``param_names`` and ``weight_decay``.

    Raises:
        TypeError: ``model`` is no module, or ``no_decay`` no list of strings.
        ValueError: an entry of ``no_decay`` names no parameter of the model, and no module that
            holds one.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        >>> [g["param_names"] for g in param_groups_weight_decay(model, 0.1)]
        [['0.weight'], ['0.bias', '1.weight', '1.bias']]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is of type {type(model).__name__}; pass the module itself, not its parameters"
        )
    everything = list(model.named_parameters(remove_duplicate=False))  # tied ones by each name
    entries = _checked(no_decay, [name for name, _ in everything])
    exempt = {
        id(p)
        for name, p in everything
        if name.rpartition(".")[2] == "bias" or any(_names(entry, name) for entry in entries)
    }
    for module in filter(_is_norm, model.modules()):
        exempt.update(map(id, module.parameters(recurse=False)))

    def decays(param: torch.Tensor) -> bool:
        return param.dim() >= 2 and id(param) not in exempt

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = []
    for wanted, decay in ((True, weight_decay), (False, 0.0)):
        chosen = [(name, p) for name, p in named if decays(p) is wanted]
        if chosen:
            names, params = map(list, zip(*chosen, strict=True))
            groups.append({"params": params, "param_names": names, "weight_decay": decay})
    return groups


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _TORCH_NORMS) or bool(_NORM_NAME.search(type(module).__name__))


def _names(entry: str, name: str) -> bool:
    """Return whether a parameter's name, or that of a module around it, ends in ``entry``."""
    return f".{entry}." in f".{name}."


def _checked(no_decay: Iterable[str], names: list[str]) -> list[str]:
    """Return ``no_decay`` as a list, each of whose entries names some of the parameters."""
    if isinstance(no_decay, str):
        raise TypeError(
            f"no_decay is the string {no_decay!r}; pass a list, no_decay=[{no_decay!r}]"
        )
    if not isinstance(no_decay, Iterable):
        raise TypeError(
            f"no_decay is {no_decay!r}; pass a list of names, as no_decay=['embeddings'], or leave "
            "it out"
        )
    entries = list(no_decay)
    for index, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise TypeError(
                f"no_decay[{index}] is of type {type(entry).__name__}; pass the name of the "
                "parameter or module, a string"
            )
        if not any(_names(entry, name) for name in names):
            raise ValueError(
                f"no_decay[{index}] is {entry!r}, but no parameter of the model is named so, nor a "
                f"module that holds one; {_advice(entry, names)}"
            )
    return entries


def _advice(entry: str, names: list[str]) -> str:
    """Return names that resemble ``entry``, or else the first few names."""
    dots = entry.count(".")
    candidates = {  # every suffix that `_names` accepts, with as many parts as the entry
        ".".join(parts[start : start + dots + 1]): None
        for parts in (name.split(".") for name in names)
        for start in range(len(parts) - dots)
    }
    close = difflib.get_close_matches(entry, candidates)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    first = ", ".join(map(repr, names[:3])) or "none"
    return f"the first of its {len(names)} parameters: {first}"
