"""Parameters and state whose memory or shape was replaced between steps: refused, or followed.

Every case runs on the first step that looks at all tensors anew and on one that takes its tables
from the step before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import each_backend
from optimizer_table import (
    assert_identical,
    every_optimizer,
    parameters,
    params_of,
    row,
    set_gradients,
    snapshot,
    train,
)

SHAPES = ((8,), (4, 4))


def tensors_of(optimizer: torch.optim.Optimizer, param: torch.Tensor) -> dict[str, torch.Tensor]:
    state = optimizer.state[param].items()
    return {k: v for k, v in state if isinstance(v, torch.Tensor) and v.dim() > 0}


def assert_refused(optimizer: torch.optim.Optimizer, message: str) -> None:
    """A step raises, and leaves parameters, state and step counts as they are."""
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=f"^{type(optimizer).__name__}: parameter .*{message}"):
        optimizer.step()
    assert_identical(snapshot(optimizer), before)


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "size", [(32,), (3,), (2, 4), (4, 2)], ids=["longer", "shorter", "reshaped", "other"]
)
def test_a_parameter_that_its_state_no_longer_fits_is_refused(row, dtype, size) -> None:
    optimizer = row.build(parameters(dtype, shapes=((8,), (5,))))
    for _ in range(2):
        train(optimizer, [1])
    first = params_of(optimizer)[0]
    guarded = {}
    for key, tensor in tensors_of(optimizer, first).items():
        # A tensor that ends in the middle of a larger one shows what is written past its end.
        around = torch.zeros(64, dtype=tensor.dtype)
        around[: tensor.numel()] = tensor
        optimizer.state[first][key] = around[: tensor.numel()]
        guarded[key] = around
    train(optimizer, [2])
    first.grad, first.data = None, torch.ones(size, dtype=dtype)
    set_gradients(params_of(optimizer), 3)
    # Adafactor keeps other statistics of a matrix than of a vector.
    assert_refused(optimizer, r"(shape \(8,\), but the parameter has shape|the state has no )")
    for around in guarded.values():
        assert not around[8:].any()


@every_optimizer
def test_one_memory_in_another_shape_is_another_parameter(row) -> None:
    optimizer = row.build(parameters(shapes=((4, 6),)))
    train(optimizer, [1, 2])
    (param,) = params_of(optimizer)
    param.grad, param.data = None, param.data.view(6, 4)
    set_gradients([param], 3)
    assert_refused(optimizer, "needs")


def _missing(state: dict[str, Any], key: str) -> None:
    del state[key]


def _of_another_shape(state: dict[str, Any], key: str) -> None:
    state[key] = torch.zeros(*state[key].shape, 2)


def _expanded(state: dict[str, Any], key: str) -> None:
    state[key] = torch.zeros(1).expand(state[key].shape)


def _complex(state: dict[str, Any], key: str) -> None:
    state[key] = torch.zeros(state[key].shape, dtype=torch.complex64)


def _sparse(state: dict[str, Any], key: str) -> None:
    state[key] = state[key].to_sparse()


def _freed(state: dict[str, Any], key: str) -> None:
    state[key].untyped_storage().resize_(4)


def _without_values(state: dict[str, Any], key: str) -> None:
    state[key] = torch.zeros(state[key].shape, device="meta")


def _number(state: dict[str, Any], key: str) -> None:
    state[key] = 0.5


SPOILT = {
    _missing: "the state has no '{key}'",
    _of_another_shape: "state '{key}' has shape",
    _expanded: "state '{key}' has elements that share memory",
    _complex: "state '{key}' is torch.complex64",
    _sparse: "state '{key}' has layout torch.sparse_coo",
    _freed: "state '{key}' needs .* bytes, but its memory has 4",
    _without_values: "state '{key}' is on the meta device",
    _number: "state '{key}' is 0.5, not a tensor",
}


@every_optimizer
@pytest.mark.parametrize("spoil", SPOILT, ids=lambda f: f.__name__)
@pytest.mark.parametrize("steps", [1, 3], ids=["second step", "steady"])
def test_state_that_can_not_be_used_is_refused(row, spoil, steps) -> None:
    optimizer = row.build(parameters(shapes=SHAPES))
    train(optimizer, range(steps))
    param = params_of(optimizer)[-1]
    keys = tensors_of(optimizer, param)
    if spoil is _missing:
        keys = [
            k for k in keys if k != "max_exp_avg_sq" and (k != "exp_avg" or "_row" not in str(keys))
        ]
    for key in keys:
        kept = optimizer.state[param][key].clone()
        spoil(optimizer.state[param], key)
        set_gradients(params_of(optimizer), 7)
        counts = [optimizer.state[p]["step"] for p in params_of(optimizer)]
        message = SPOILT[spoil].format(key=key)
        with pytest.raises(ValueError, match=f"parameter 1.* of group 0: {message}"):
            optimizer.step()
        assert [optimizer.state[p]["step"] for p in params_of(optimizer)] == counts
        optimizer.state[param][key] = kept
    train(optimizer, [8])


@pytest.mark.parametrize("step", [-5, 2.5, float("nan"), float("inf"), "three"])
def test_a_step_count_that_is_none_is_refused(step) -> None:
    optimizer = row("AdamW").build(parameters(shapes=SHAPES))
    train(optimizer, [1, 2])
    optimizer.state[params_of(optimizer)[0]]["step"] = step
    set_gradients(params_of(optimizer), 3)
    with pytest.raises(ValueError, match="'step' is .*; it should be a whole number"):
        optimizer.step()


@every_optimizer
@pytest.mark.parametrize("extra,mode", [("compensation", "kahan"), ("remainder", "split")])
def test_what_a_precision_mode_keeps_is_checked_too(row, extra, mode) -> None:
    optimizer = row.build(parameters(torch.bfloat16, shapes=((8,),)), low_precision=mode)
    train(optimizer, [1, 2])
    (param,) = params_of(optimizer)
    optimizer.state[param][extra] = torch.zeros(9, dtype=torch.bfloat16)
    set_gradients([param], 3)
    assert_refused(optimizer, f"state '{extra}' has shape \\(9,\\)")


def _by_data(tensor: torch.Tensor) -> torch.Tensor:
    old = tensor.data
    tensor.data = old.clone()
    return old


def _by_set(tensor: torch.Tensor) -> torch.Tensor:
    old = tensor.detach().view_as(tensor)
    tensor.set_(old.clone())
    return old


def _by_resizing(tensor: torch.Tensor) -> torch.Tensor:
    """As an offloader frees and fetches: what was there is copied to other memory and back."""
    kept, storage = tensor.detach().clone(), tensor.untyped_storage()
    size = storage.nbytes()
    storage.resize_(0)
    taken = [torch.empty(size, dtype=torch.uint8) for _ in range(4)]  # the memory that was freed
    storage.resize_(size)
    with torch.no_grad():
        tensor.copy_(kept)
    return taken[0]


@each_backend
@pytest.mark.parametrize("move", [_by_data, _by_set, _by_resizing], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["torch-AdamW", "Adafactor-momentum"])
def test_state_is_found_where_it_moved_to(
    name: str, move: Callable[[torch.Tensor], torch.Tensor], backend: str
) -> None:
    moved, still = (
        row(name).build(parameters(torch.bfloat16, SHAPES), backend=backend, low_precision="split")
        for _ in range(2)
    )
    kept = []
    for step in range(5):
        if step == 3:
            for param in params_of(moved):
                for tensor in tensors_of(moved, param).values():
                    kept.append(move(tensor))
                    if kept[-1].dtype is not torch.uint8:
                        kept[-1].fill_(777.0)
        train(moved, [step])
        train(still, [step])
        assert_identical(snapshot(moved), snapshot(still))


@each_backend
def test_a_gradient_whose_memory_is_gone_is_refused(backend: str) -> None:
    optimizer = row("AdamW").build(parameters(shapes=SHAPES), backend=backend)
    train(optimizer, [1, 2])
    set_gradients(params_of(optimizer), 3)
    params_of(optimizer)[1].grad.untyped_storage().resize_(0)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="gradient of parameter 1 of group 0 needs 64 bytes"):
        optimizer.step()
    assert_identical(snapshot(optimizer), before)


@every_optimizer
def test_a_parameter_that_was_transposed_in_place_is_not_taken_for_what_it_was(row) -> None:
    """Its gradient may be contiguous all the same, and its address is the old one."""
    optimizer, anew = (row.build(parameters(shapes=((4, 4),))) for _ in range(2))
    for each in (optimizer, anew):
        train(each, [1, 2, 3])
        (param,) = params_of(each)
        param.data = param.data.t()
        set_gradients([param], 4)
    anew._steady = None
    optimizer.step()
    anew.step()
    assert_identical(snapshot(optimizer), snapshot(anew))
