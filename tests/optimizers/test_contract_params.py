"""What may happen to the tensors under an optimizer: moved, swapped, converted, written to."""

import copy
import gc
import weakref

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

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def swap(optimizer, replacements):
    """Put other parameters in the places of an optimizer's, in its groups only."""
    replacements = iter(replacements)
    for group in optimizer.param_groups:
        for i in range(len(group["params"])):
            group["params"][i] = next(replacements)


def references(tensors):
    return [weakref.ref(t) for t in tensors]


def assert_freed(references):
    if any(r() is not None for r in references):
        gc.collect()
    assert [r() is None for r in references] == [True] * len(references)


@every_optimizer
def test_parameters_swapped_before_the_first_step_are_freed(row):
    """accelerate puts stand-ins, then shards in the groups, and loads the state dict at once."""
    optimizer = row.build(parameters())
    old = references(params_of(optimizer))
    swap(optimizer, [torch.empty(1) for _ in old])
    assert_freed(old)
    swap(optimizer, parameters())
    optimizer.load_state_dict(optimizer.state_dict())
    plain = row.build(parameters())
    for each in (optimizer, plain):
        train(each, [1, 2])
    assert_identical(snapshot(optimizer), snapshot(plain))


@every_optimizer
@DTYPES
def test_parameters_replaced_in_training_are_freed_once_the_state_is_reloaded(row, dtype):
    optimizer, plain = row.build(parameters(dtype)), row.build(parameters(dtype))
    train(optimizer, [1, 2])
    saved = optimizer.state_dict()
    old = references(params_of(optimizer))
    swap(optimizer, [torch.nn.Parameter(p.detach().clone()) for p in params_of(optimizer)])
    optimizer.load_state_dict(saved)
    del saved
    assert_freed(old)
    train(optimizer, [3, 4])
    train(plain, [1, 2, 3, 4])
    assert_identical(snapshot(optimizer), snapshot(plain))


@every_optimizer
def test_a_step_keeps_no_gradient_alive(row):
    optimizer = row.build(parameters(), max_grad_norm=None)
    train(optimizer, [1, 2])
    grads = references([p.grad for p in params_of(optimizer)])
    optimizer.zero_grad()
    assert_freed(grads)


@every_optimizer
def test_an_optimizer_is_freed_with_its_parameters(row):
    optimizer = row.build(parameters())
    train(optimizer, [1, 2])
    everything = references([optimizer, *params_of(optimizer)])
    del optimizer
    assert_freed(everything)


@every_optimizer
@DTYPES
def test_new_storage_under_a_parameter_is_found(row, dtype):
    optimizer, plain = row.build(parameters(dtype)), row.build(parameters(dtype))
    for step in (1, 2, 3):
        for p in params_of(optimizer):
            p.data = p.data.clone()
            for key, value in optimizer.state[p].items():
                if isinstance(value, torch.Tensor):
                    optimizer.state[p][key] = value.clone()
        train(optimizer, [step])
        train(plain, [step])
    assert_identical(snapshot(optimizer), snapshot(plain))


@pytest.fixture
def swapping():
    """What keeps a module's parameters the same objects whatever is done to the module."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@every_optimizer
def test_a_module_may_load_by_assignment_and_convert(row, swapping):
    model, plain_model = (torch.nn.ParameterList(parameters()) for _ in range(2))
    optimizer, plain = row.build(model), row.build(plain_model)
    train(optimizer, [1, 2])
    train(plain, [1, 2])
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    assert all(p is q for p, q in zip(model.parameters(), params_of(optimizer), strict=True))
    train(optimizer, [3])
    train(plain, [3])
    assert_identical(snapshot(optimizer), snapshot(plain))
    optimizer.zero_grad()
    model.bfloat16()
    train(optimizer, [4])
    assert all(p.dtype is torch.bfloat16 for p in params_of(optimizer))
    assert all(optimizer.state[p]["step"] == 4 for p in params_of(optimizer))


@every_optimizer
def test_tensors_may_be_swapped_for_others_from_meta_too(row):
    params = [torch.nn.Parameter(torch.empty_like(p, device="meta")) for p in parameters()]
    optimizer, plain = row.build(params), row.build(parameters())
    for p, real in zip(params, parameters(), strict=True):
        torch.utils.swap_tensors(p, real)
    train(optimizer, [1, 2])
    train(plain, [1, 2])
    for p in params:
        torch.utils.swap_tensors(p, torch.nn.Parameter(p.detach().clone()))
    train(optimizer, [3])
    train(plain, [3])
    assert_identical(snapshot(optimizer), snapshot(plain))


@every_optimizer
def test_a_model_converted_in_training_goes_on(row):
    optimizer = row.build(parameters(), low_precision="auto")
    train(optimizer, [1, 2])
    for dtype, extra in ((torch.bfloat16, "remainder"), (torch.float16, "master")):
        for p in params_of(optimizer):
            p.grad, p.data = None, p.data.to(dtype)
        train(optimizer, [3, 4])
        assert all(extra in optimizer.state[p] for p in params_of(optimizer))
    for p in params_of(optimizer):
        p.grad, p.data = None, p.data.float()
    train(optimizer, [5])
    for p in params_of(optimizer):
        assert optimizer.state[p]["step"] == 7
        assert not {"remainder", "master", "compensation"} & optimizer.state[p].keys()
        tensors = [v for v in optimizer.state[p].values() if isinstance(v, torch.Tensor)]
        assert {t.dtype for t in tensors} == {torch.float32}


@every_optimizer
@DTYPES
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
def test_version_counters_of_all_that_is_written_go_up(row, dtype, strided):
    params = parameters(dtype)
    if strided:
        params.append(torch.nn.Parameter(torch.randn(4, 6).to(dtype).t()))
    optimizer = row.build(params)
    train(optimizer, [1])
    written = {f"parameter {i}": p for i, p in enumerate(params)}
    for i, p in enumerate(params):
        state = optimizer.state[p].items()
        written.update({f"{key} {i}": t for key, t in state if isinstance(t, torch.Tensor)})
    if row.name == "Adafactor-lr":  # without scale_parameter nobody needs it
        written = {name: t for name, t in written.items() if "RMS" not in name}
    before = {name: t._version for name, t in written.items()}
    train(optimizer, [2])
    assert [name for name, t in written.items() if t._version <= before[name]] == []


@every_optimizer
@DTYPES
def test_backward_through_a_graph_older_than_the_step_raises(row, dtype):
    optimizer = row.build(parameters(dtype))
    for p in params_of(optimizer):
        loss = p.square().sum()
        set_gradients(params_of(optimizer), 1)
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@every_optimizer
def test_step_may_be_replaced_on_the_instance(row):
    """accelerate does, around each scaled step; schedulers do for good."""
    optimizer, plain = row.build(parameters()), row.build(parameters())
    original, calls = optimizer.step, []
    optimizer.step = lambda *args, **kwargs: calls.append(args) or original(*args, **kwargs)
    train(optimizer, [1])
    set_gradients(params_of(optimizer), 2)
    optimizer.step(None)
    twin = copy.deepcopy(optimizer)
    optimizer.step = original
    train(optimizer, [3])
    train(twin, [3])
    train(plain, [1, 2, 3])
    assert calls == [(), (None,)]
    for each in (optimizer, twin):
        assert_identical(snapshot(each), snapshot(plain))


@every_optimizer
def test_step_inside_a_compiled_function(row):
    optimizer, plain = row.build(parameters()), row.build(parameters())

    @torch.compile(backend="eager")
    def iteration(x):
        y = x * 2.0
        optimizer.step()
        return y + 1.0

    for step in (1, 2, 3):
        set_gradients(params_of(optimizer), step)
        assert iteration(torch.ones(2)).tolist() == [3.0, 3.0]
    train(plain, [1, 2, 3])
    assert_identical(snapshot(optimizer), snapshot(plain))
