"""Parameters and gradients that can't be used: refused before anything changes."""

import pytest
import torch
from optimizer_table import (
    assert_identical,
    every_optimizer,
    parameters,
    params_of,
    set_gradients,
    snapshot,
    train,
)

import fused_optim


def good():
    return parameters(shapes=[(3, 2)])[0]


def freed(tensor):
    tensor.untyped_storage().resize_(8)
    return tensor


BAD_PARAMETERS = {
    "complex": (lambda: torch.zeros(2, dtype=torch.complex64), r"complex64; .*view_as_real"),
    "float8": (lambda: torch.zeros(2).to(torch.float8_e4m3fn), r"float8_e4m3fn; parameters must"),
    "sparse": (lambda: torch.eye(2).to_sparse(), r"layout torch.sparse_coo; only dense"),
    "expanded": (lambda: torch.zeros(3, 1).expand(3, 2), r"share memory \(strides \(1, 0\)"),
    "overlapping": (
        lambda: torch.zeros(8).as_strided((3, 4), (2, 1)),
        r"share memory \(strides \(2, 1\) for shape \(3, 4\)\); pass p.contiguous\(\)",
    ),
    "freed": (lambda: freed(torch.zeros(3)), "needs 12 bytes, but its memory has 8; pass"),
}
bad_parameters = pytest.mark.parametrize(
    "make,message", BAD_PARAMETERS.values(), ids=list(BAD_PARAMETERS)
)


@every_optimizer
@bad_parameters
def test_parameters_that_no_backend_can_update_are_refused_by_name(row, make, message):
    cls = type(row.build([good()])).__name__
    with pytest.raises(ValueError, match=rf"^{cls}: parameter 1 .*of group 0 .*{message}"):
        row.build([("a.weight", good()), ("b.weight", make().requires_grad_())])
    with pytest.raises(ValueError, match=rf"^{cls}: parameter 0.* of group 1 .*{message}"):
        row.build([{"params": [good()]}, {"params": [make().requires_grad_()]}])


FROZEN = {name: make for name, (make, _) in BAD_PARAMETERS.items()} | {
    "integer": lambda: torch.zeros(2, dtype=torch.int64),
    "uint8": lambda: torch.zeros(2, dtype=torch.uint8),
    "bool": lambda: torch.zeros(2, dtype=torch.bool),
    "float16": lambda: torch.zeros(2, dtype=torch.float16),
    "lazy": torch.nn.parameter.UninitializedParameter,
}


@every_optimizer
@pytest.mark.parametrize("make", FROZEN.values(), ids=list(FROZEN))
def test_what_is_not_trained_may_be_of_any_kind(row, make):
    """As the base of a quantized model, or what a lazy module has before it saw an input."""
    trained, frozen = good(), make()
    optimizer = row.build([("a", trained), ("b", frozen)], low_precision="split")
    for _ in range(2):
        trained.grad = torch.ones_like(trained)
        optimizer.step()
    optimizer.init_state()
    optimizer.check_numerics()
    assert frozen not in optimizer.state
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[trained]["step"] == 2


@every_optimizer
def test_a_lazy_parameter_trains_once_it_is_there(row):
    layer = torch.nn.LazyLinear(3)
    optimizer = row.build(layer)
    layer(torch.ones(2, 5)).sum().backward()
    before = layer.weight.detach().clone()
    for _ in range(2):  # a warm-up begins at a rate of 0
        optimizer.step()
    assert optimizer.state[layer.weight]["step"] == 2
    assert not torch.equal(layer.weight, before)


@every_optimizer
def test_a_frozen_parameter_of_another_kind_is_refused_once_it_has_a_gradient(row):
    frozen = torch.zeros(2, dtype=torch.complex64)
    optimizer = row.build([("a", good()), ("b", frozen)])
    set_gradients(params_of(optimizer)[:1], 1)
    frozen.grad = torch.zeros_like(frozen)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="parameter 1.* of group 0 is torch.complex64"):
        optimizer.step()
    assert_identical(snapshot(optimizer), before)


@every_optimizer
def test_errors_call_named_parameters_by_their_names(row):
    make = BAD_PARAMETERS["float8"][0]
    called = r"parameter 1 \('b\.weight'\) of group 0 is torch\.float8"
    with pytest.raises(ValueError, match=called):
        row.build([("a.weight", good()), ("b.weight", make().requires_grad_())])


@every_optimizer
def test_split_is_refused_for_float16(row):
    params = [good(), *parameters(torch.float16, shapes=[(2,)])]
    with pytest.raises(ValueError, match=r"parameter 1.*split.*bfloat16.*use 'master'"):
        row.build(params, low_precision="split")


@every_optimizer
def test_views_that_share_no_memory_are_fine(row):
    storage = torch.randn(4, 6)
    params = [
        torch.nn.Parameter(storage[:2]),
        torch.nn.Parameter(storage[2:, ::2]),
        torch.nn.Parameter(storage[2:, 1::2].t()),
        torch.nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)),
        torch.nn.Parameter(torch.zeros(0, 1).expand(0, 3)),
        torch.nn.Parameter(torch.zeros(1, 0).expand(4, 0)),
        torch.nn.Parameter(torch.zeros(1).expand(1)),
    ]
    train(row.build(params), [1])


@every_optimizer
def test_the_list_of_parameters_itself(row):
    with pytest.raises(ValueError, match="empty parameter list"):
        row.make([], **row.kwargs)
    with pytest.raises(ValueError, match="empty parameter list"):
        row.make(iter(()), **row.kwargs)
    with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
        row.make(good(), **row.kwargs)
    with pytest.raises(TypeError, match="ordered collections"):
        row.make([{"params": {good()}}], **row.kwargs)
    with pytest.raises(TypeError, match="can only optimize Tensors"):
        row.make([("a", 1.0)], **row.kwargs)
    with pytest.raises(ValueError, match="non-leaf"):
        row.build([good() * 2])
    with pytest.raises(ValueError, match="with/without names"):
        row.make([("a", good()), good()], **row.kwargs)


@every_optimizer
def test_duplicates_are_refused(row):
    p = good()
    with pytest.raises(ValueError, match="twice in one group; list each parameter once"):
        row.build([p, good(), p])
    with pytest.raises(ValueError, match="more than one parameter group"):
        row.build([{"params": [p]}, {"params": [good(), p]}])


@every_optimizer
@pytest.mark.parametrize(
    "change",
    [
        {"params": "float8"},
        {"maximize": "yes"},
        {"max_grad_norm": 1.0},
        {"seed": 3},
        {"backend": "eager"},
        {"low_precision": "none"},
        {"weight_decay": float("nan")},
        {"capturable": "yes"},
        {"params": "old"},
        {"params": "twice"},
        {"params": "non-leaf"},
        {"params": "other names"},
    ],
    ids=str,
)
def test_a_group_that_is_refused_leaves_no_trace(row, change):
    optimizer = row.build([good()])
    train(optimizer, [1])
    new = good()
    special = {
        "float8": [torch.zeros(2).to(torch.float8_e4m3fn).requires_grad_()],
        "old": params_of(optimizer),
        "twice": [new, new],
        "non-leaf": [new, new * 2],
        "other names": [new] if row.named else [("name", new)],
    }
    params = special[change["params"]] if "params" in change else [new]
    if row.named and change.get("params") != "other names":
        params = [(f"new{i}", p) for i, p in enumerate(params)]
    group = {"lr": 0.5, **change, "params": params}
    if "relative_step" in optimizer.param_groups[0]:
        group.update(relative_step=False, warmup_init=False)
    before, given = snapshot(optimizer), dict(group)
    with pytest.raises((ValueError, NotImplementedError)):
        optimizer.add_param_group(group)
    assert_identical(snapshot(optimizer), before)
    assert len(optimizer.param_groups) == 1
    assert group.keys() == given.keys()
    assert all(group[key] is given[key] for key in given)
    optimizer.add_param_group({"params": [("fine", new)] if row.named else new})
    train(optimizer, [2])


BAD_GRADIENTS = {
    "sparse": (lambda p: torch.zeros_like(p).to_sparse(), r".*layout torch.sparse_coo.*SparseAdam"),
    "shape": (lambda p: torch.zeros(4, 2), r"shape \(4, 2\) on .* they must agree"),
    "transposed": (lambda p: torch.zeros(2, 3), r"shape \(2, 3\) on .*the parameter \(3, 2\)"),
    "device": (lambda p: torch.zeros_like(p, device="meta"), r"shape \(3, 2\) on meta"),
    "integer": (lambda p: torch.zeros_like(p, dtype=torch.int32), r"is torch.int32, not a float"),
    "complex": (lambda p: torch.zeros_like(p, dtype=torch.complex64), r"is torch.complex64, not a"),
}


@every_optimizer
@pytest.mark.parametrize("make,message", BAD_GRADIENTS.values(), ids=list(BAD_GRADIENTS))
@pytest.mark.parametrize("steps_before", [0, 2])
def test_bad_gradients_are_refused_and_nothing_changes(row, make, message, steps_before):
    params = [*parameters(shapes=[(4,), (5, 2)]), good(), *parameters(shapes=[(4, 2)])]
    optimizer = row.build(params, max_grad_norm=None)
    train(optimizer, range(1, steps_before + 1))
    before = snapshot(optimizer)
    set_gradients(params, 7)
    params[2].main_grad = make(params[2])
    name = type(optimizer).__name__
    with pytest.raises(RuntimeError, match=f"^{name}.* parameter 2.* of group 0 .*{message}"):
        optimizer.step()
    assert_identical(snapshot(optimizer), before)
    params[2].main_grad = None
    optimizer.step()
    assert [optimizer.state[p]["step"] for p in params] == [steps_before + 1] * 4


@every_optimizer
def test_the_sparse_gradient_of_an_embedding(row):
    embedding = torch.nn.Embedding(4, 3, sparse=True)
    optimizer = row.build(embedding)
    before = snapshot(optimizer)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False in the embedding, or torch.optim.Sparse"):
        optimizer.step()
    assert_identical(snapshot(optimizer), before)


def test_a_mode_that_no_longer_fits_is_refused_before_the_step():
    optimizer = fused_optim.AdamW(parameters(torch.bfloat16), low_precision="split")
    train(optimizer, [1])
    for p in params_of(optimizer)[2:]:
        p.grad, p.data = None, p.data.half()
    before = snapshot(optimizer)
    set_gradients(params_of(optimizer), 2)
    with pytest.raises(ValueError, match="split.*bfloat16 parameters only"):
        optimizer.step()
    assert_identical(snapshot(optimizer), before)
