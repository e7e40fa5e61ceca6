"""Matches the parameters of a state dict with those of the optimizer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")
"""Parts that DistributedDataParallel, torch.compile and FSDP1 add to parameter names."""


def sections(state_dict: Mapping[str, Any]) -> tuple[Mapping[Any, Any], Sequence[dict[str, Any]]]:
    """Return the two parts of a state dict: states by parameter id, and parameter groups.

    Ids that JSON turned into strings are turned back into numbers.

    Raises:
        ValueError: it is no optimizer's state dict.
    """
    for key in ("state", "param_groups"):
        if key not in state_dict:
            flat = any(str(name).startswith(("state.", "param_groups.")) for name in state_dict)
            remedy = (
                "it is flattened; torch.distributed.checkpoint.state_dict.set_optimizer_state_dict "
                "loads it"
                if flat
                else "pass what an optimizer's state_dict() returned (is it a whole checkpoint?)"
            )
            raise ValueError(f"the dict has no {key!r} but {_few(state_dict)}; {remedy}")
    states, groups = state_dict["state"], state_dict["param_groups"]
    if not isinstance(states, Mapping):
        raise ValueError(
            f"'state' is a {type(states).__name__}; it should be a dict by parameter; "
            "load the dict as it was saved"
        )
    if not isinstance(groups, (list, tuple)):
        raise ValueError(
            f"'param_groups' is a {type(groups).__name__}; it should be a list; load the dict "
            "as it was saved"
        )
    for index, group in enumerate(groups):
        _check_group(index, group)
    every = [param_id for group in groups for param_id in group["params"]]
    if not all(isinstance(param_id, Hashable) for param_id in every):
        raise ValueError(
            "'params' of a group has no ids, but things that can't be looked up; "
            "load the dict as it was saved"
        )
    ids = set(every)
    if len(ids) != len(every):
        raise ValueError(
            "an id occurs twice in the 'params' of the dict's groups; load the dict as it was saved"
        )
    if not ids & states.keys():
        from_json = {key: int(key) for key in states if isinstance(key, str) and key.isdigit()}
        if ids & set(from_json.values()):
            states = {from_json.get(key, key): value for key, value in states.items()}
    return states, groups


def _check_group(index: int, group: Any) -> None:
    """Refuse a parameter group that has no list of parameters, or no list of their names."""
    params = group.get("params") if isinstance(group, Mapping) else None
    if not isinstance(params, (list, tuple)):
        raise ValueError(
            f"group {index} is no dict with a list 'params': {_few(group)}; load the dict as "
            "it was saved"
        )
    names = group.get("param_names")
    if names is not None and not (
        isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    ):
        raise ValueError(
            f"'param_names' of group {index} is no list of names: {_few(names)}; "
            "load the dict as it was saved, or remove the key to load by position"
        )


def in_order_of(
    groups: Sequence[dict[str, Any]], saved_groups: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the saved groups, each with its ``params`` in the order of the optimizer's group.

    Parameters are matched by name if both sides have names, else by place.

    Raises:
        ValueError: the groups differ in number or size, or by the names in them.
    """
    sizes, saved_sizes = ([len(g["params"]) for g in gs] for gs in (groups, saved_groups))
    if len(sizes) != len(saved_sizes):
        raise ValueError(
            "loaded state dict has a different number of parameter groups: "
            f"{len(saved_sizes)}, not {len(sizes)}"
        )
    if sizes != saved_sizes:
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of "
            f"optimizer's group: sizes are {saved_sizes}, not {sizes}"
        )
    return [
        {**saved, "params": _reordered(index, group, saved)}
        for index, (group, saved) in enumerate(zip(groups, saved_groups, strict=True))
    ]


def _reordered(index: int, group: Mapping[str, Any], saved: Mapping[str, Any]) -> list[Any]:
    names, saved_names = group.get("param_names"), saved.get("param_names")
    ids = list(saved["params"])
    if not names or not saved_names:
        return ids
    for whose, some in (("optimizer's", names), ("dict's", saved_names)):
        if len(some) != len(ids):
            raise ValueError(
                f"the {whose} group {index} has {len(some)} param_names for {len(ids)} parameters; "
                "change both lists together"
            )
    names, saved_names = ([_bare(name) for name in some] for some in (names, saved_names))
    if names == saved_names:
        return ids
    place = {name: number for number, name in enumerate(saved_names)}
    missing = [name for name in names if name not in place]
    if missing or len(place) != len(ids):
        told = f"its names lack {missing[0]!r}" if missing else "a name occurs twice in it"
        raise ValueError(
            f"group {index} of the dict is of other parameters: {told}, and have "
            f"{_few(saved_names)}; give the groups the same parameters, or remove 'param_names' "
            "from the dict's groups to load by position"
        )
    return [ids[place[name]] for name in names]


def _bare(name: str) -> str:
    """Return a parameter's name without the parts that wrappers of its model added."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _few(things: Any) -> str:
    """Return the first few keys or values of ``given``, for a message."""
    if not isinstance(things, (Mapping, list, tuple)):
        return repr(things)
    shown = ", ".join(repr(thing) for thing in list(things)[:4])
    return shown + (", ..." if len(things) > 4 else "") if things else "nothing"
