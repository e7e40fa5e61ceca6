"""Parameter groups with and without weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def param_groups_weight_decay(
    model: torch.nn.Module, weight_decay: float, no_decay: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Return at most two groups: the parameters that decay, and those that don't.

    Parameters of fewer than two dimensions (biases, gains of norms), parameters of norm modules
    and those named ``bias`` do not decay. Parameters that need no gradient are left out, tied ones
    are listed once, a group without parameters is dropped.

    Args:
        model: the model.
        weight_decay: of the group that decays.
        no_decay: more parameters that do not decay: names, or endings of names after a dot
            (``"wte.weight"`` is also ``"transformer.wte.weight"``).

    Returns:
        Groups with the keys ``params``, ``param_names`` and ``weight_decay``.

    Raises:
        ValueError: an entry of ``no_decay`` matches no parameter of the model.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
        >>> [g["param_names"] for g in param_groups_weight_decay(model, 0.1)]
        [['0.weight'], ['0.bias', '1.weight', '1.bias']]
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    in_norms = {
        id(p)
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for p in module.parameters(recurse=False)
    }
    endings = tuple(no_decay)
    everything = list(model.named_parameters(remove_duplicate=False))  # tied ones by each name
    for ending in endings:
        if not any(_ends_with(name, ending) for name, _ in everything):
            raise ValueError(f"no_decay: no parameter of the model is named {ending!r}")
    exempt = in_norms | {
        id(p) for name, p in everything if any(_ends_with(name, e) for e in ("bias", *endings))
    }

    def decays(param: torch.Tensor) -> bool:
        return param.dim() >= 2 and id(param) not in exempt

    groups = []
    for wanted, decay in ((True, weight_decay), (False, 0.0)):
        chosen = [(name, p) for name, p in named if decays(p) is wanted]
        if chosen:
            names, params = map(list, zip(*chosen, strict=True))
            groups.append({"params": params, "param_names": names, "weight_decay": decay})
    return groups


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)
