"""torch's own optimizer tests, over our classes: what is refused, and all that differs on purpose.

The bodies of torch's ``TestOptimRenewed`` go by its names here and in ``test_torch_suite_*.py``.
What does not hold for us by design is in one table, `DIFFERENCES`, each with a test of what holds
instead. Not here: what measures a GPU's memory or needs several of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from optimizer_table import assert_identical
from torch_database import database
from torch_suite import ADAMS, CLASSES, TORCH_CLASSES, Input, torch_info

# --- what differs ---------------------------------------------------------------------------------


def parameter(dtype=torch.float32):
    """Return a parameter with a gradient."""
    p = torch.nn.Parameter(torch.randn(3, 2, dtype=dtype))
    p.grad = torch.randn_like(p)
    return p


def stepped(name, **options):
    """Return a parameter after three steps and its optimizer; the same for the same options."""
    torch.manual_seed(0)
    p = parameter()
    optimizer = CLASSES[name]([p], **options)
    for _ in range(3):
        optimizer.step()
    return p.detach(), optimizer


def complex_is_refused(name):
    with pytest.raises(ValueError, match=r"complex64; .* optimize torch.view_as_real\(p\) instead"):
        CLASSES[name]([parameter(torch.complex64)])


def sparse_is_refused(name):
    p = parameter()
    p.grad = p.grad.to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        CLASSES[name]([p]).step()


def differentiable_is_refused(name):
    for flags in ({}, {"fused": True}):
        with pytest.raises(RuntimeError, match="`fused` does not support `differentiable`"):
            CLASSES[name]([parameter()], differentiable=True, **flags)


def flags_have_no_effect(name):
    flags = ("foreach",) if name == "torch-Adafactor" else ("foreach", "fused")
    plain, _ = stepped(name)
    for flag in flags:
        for value in (None, False, True):
            assert torch.equal(stepped(name, **{flag: value})[0], plain)


def duplicates_are_refused(name):
    p = parameter()
    with pytest.raises(ValueError, match="occurs twice in one group"):
        CLASSES[name]([p, p])


def tensor_lr_goes_with_foreach(name):
    tensor, optimizer = stepped(name, lr=torch.tensor(0.25), foreach=True)
    assert torch.equal(tensor, stepped(name, lr=0.25, foreach=True)[0])
    assert torch.is_tensor(optimizer.param_groups[0]["lr"])


def tensor_betas_become_numbers(name):
    plain, _ = stepped(name, betas=(0.5, 0.75))
    half, most = torch.tensor(0.5), torch.tensor([0.75])
    for betas in ((half, most), (half, 0.75), (0.5, most)):
        tensor, optimizer = stepped(name, betas=betas, foreach=True)
        assert torch.equal(tensor, plain)
        assert optimizer.param_groups[0]["betas"] == (0.5, 0.75)


def step_is_a_python_int(name):
    torch.set_default_dtype(torch.float64)
    try:
        _, optimizer = stepped(name)
        steps = [s["step"] for s in optimizer.state.values()]
        saved = [s["step"] for s in optimizer.state_dict()["state"].values()]
    finally:
        torch.set_default_dtype(torch.float32)
    assert steps == [3] and type(steps[0]) is int
    if name in TORCH_CLASSES:
        assert_identical(saved, [torch.tensor(3.0, dtype=torch.float32)])
    else:
        assert_identical(saved, [3])


def meta_parameters_step(name):
    p = torch.nn.Parameter(torch.empty(3, 2, device="meta"))
    p.grad = torch.empty_like(p)
    optimizer = CLASSES[name]([p])
    optimizer.step()
    assert optimizer.state[p].pop("step") == 1
    assert all(t.is_meta for t in optimizer.state[p].values())


def own_schedules_ignore_schedulers(name):
    if name == "Adafactor":
        optimizer = CLASSES[name]([parameter()])
        with pytest.raises(TypeError):  # torch multiplies its lr, which is None
            torch.optim.lr_scheduler.ConstantLR(optimizer, 0.5)
        with pytest.raises(ValueError, match="Cannot combine manual `lr` and `relative_step=True`"):
            CLASSES[name]([{"params": [parameter()], "lr": 0.1}])
    else:
        optimizer = CLASSES[name]([parameter()], lambda step: 0.5**step)
        torch.optim.lr_scheduler.ConstantLR(optimizer, 0.1)
        for step in range(3):
            optimizer.step()
            assert optimizer.param_groups[0]["lr"] == 0.5**step


def skipped_first_step_makes_no_state(name):
    p = parameter()
    before, optimizer = p.detach().clone(), CLASSES[name]([p])
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert not optimizer.state and torch.equal(p, before)


@dataclass(frozen=True)
class Difference:
    """What a test of torch's asserts and we do not, on purpose.

    Attributes:
        body: the test's name.
        reason: why.
        holds: asserts what holds instead, of a class by name.
        names: of the classes that it is about.
        error_inputs: for ``test_errors``: descriptions of torch's inputs that we take otherwise.
    """

    body: str
    reason: str
    holds: Callable[[str], None]
    names: tuple[str, ...] = tuple(CLASSES)
    error_inputs: tuple[str, ...] = ()


DIFFERENCES = (
    Difference(
        "test_complex, test_complex_2d, test_errors",
        "complex parameters are refused at construction; torch's Adafactor refuses them at a step",
        complex_is_refused,
        error_inputs=("does not support complex parameters",),
    ),
    Difference(
        "test_rosenbrock_sparse",
        "sparse gradients are refused, as torch's own Adam does",
        sparse_is_refused,
    ),
    Difference(
        "all with `differentiable`",
        "a fused step records no gradients",
        differentiable_is_refused,
        ADAMS,
    ),
    Difference(
        "test_defaults_changed_to_foreach",
        "there is one implementation per backend, whatever `foreach` and `fused` say",
        flags_have_no_effect,
        tuple(TORCH_CLASSES),
    ),
    Difference(
        "test_errors",
        "torch warns of a parameter twice in a group, and updates it twice",
        duplicates_are_refused,
        error_inputs=("a param group cannot have duplicate parameters",),
    ),
    Difference(
        "test_errors",
        "there is no foreach implementation that could not take a tensor",
        tensor_lr_goes_with_foreach,
        tuple(TORCH_CLASSES),
        ("lr as Tensor doesn't work with foreach & not capturable",),
    ),
    Difference(
        "test_errors",
        "without `capturable` betas become numbers at once, so that any mixture will do",
        tensor_betas_become_numbers,
        ADAMS,
        (
            "betas must be either both floats or both Tensors",
            r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True",
        ),
    ),
    Difference(
        "test_set_default_dtype_works_with_foreach",
        "step counts are Python ints, float32 in torch_compat's state dicts whatever the default",
        step_is_a_python_int,
    ),
    Difference(
        "test_fused_error_on_params_on_meta",
        "eager steps parameters on any device; on that of shapes alone there is nothing to compute",
        meta_parameters_step,
    ),
    Difference(
        "all with schedulers, test_param_groups_lr, test_tensor_lr",
        "`relative_step` and a callable learning rate are schedules themselves",
        own_schedules_ignore_schedulers,
        ("Adafactor", "AdamWeightDecay"),
    ),
    Difference(
        "test_fused_does_not_step_if_foundinf",
        "a skipped step makes no state, where torch makes step counts of 0",
        skipped_first_step_makes_no_state,
    ),
)


@pytest.mark.parametrize(
    "difference,name",
    [(each, name) for each in DIFFERENCES for name in each.names],
    ids=lambda value: value if isinstance(value, str) else value.holds.__name__,
)
def test_what_differs_from_torch_differs_as_the_table_says(difference, name):
    difference.holds(name)


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_errors(name):
    """What torch refuses we refuse, with an error of the same type, its words ours."""
    excepted = {desc for each in DIFFERENCES for desc in each.error_inputs if name in each.names}
    if name in TORCH_CLASSES:
        errors = torch_info(name).optim_error_inputs_func(device="cpu", dtype=torch.float32)
    else:
        errors = database().get_error_inputs_for_all_optims("cpu", torch.float32)
    errors = [e for e in errors if e.optimizer_error_input.desc not in excepted]
    assert len(errors) > 4
    for error in errors:
        given = error.optimizer_error_input
        assert error.error_on is database().OptimizerErrorEnum.CONSTRUCTION_ERROR
        with pytest.raises(Exception) as caught:
            case = Input(name, {"relative_step": False} if name == "Adafactor" else {})
            params = [parameter()] if given.params is None else given.params
            case.build(params, **{"lr": 1e-2, **given.kwargs})
        assert caught.type is error.error_type, f"{given.desc}: {caught.value!r}"


@pytest.mark.parametrize("name", ADAMS)
def test_contradicting_flags_are_refused(name):
    with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
        CLASSES[name]([parameter()], foreach=True, fused=True)
