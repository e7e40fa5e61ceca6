"""torch's own comparisons of its implementations, with ours in the place of the second one.

Both take the same steps side by side, and after each ours takes over torch's values, so that what
differs is one step's doing.
"""

import pytest
import torch
from optimizer_table import assert_identical
from torch.optim import lr_scheduler
from torch_suite import CLASSES, TORCH_CLASSES, Regression, network, over_inputs

pytestmark = pytest.mark.long

# For 16 bits what torch allows between its own implementations.
TOLERANCES = {
    torch.float64: {},
    torch.float32: {},
    torch.bfloat16: {"rtol": 5e-3, "atol": 5e-3},
    torch.float16: {"rtol": 5e-3, "atol": 5e-3},
}


def assert_close_and_take_over(ours, theirs, dtype):
    """Compare parameters and state of two optimizers, keys and shapes included."""
    for ours_group, theirs_group in zip(ours.param_groups, theirs.param_groups, strict=True):
        for p, q in zip(ours_group["params"], theirs_group["params"], strict=True):
            mine, theirs_state = ours.state[p], theirs.state[q]
            assert mine.keys() == theirs_state.keys()
            assert float(mine.get("step", 0)) == float(theirs_state.get("step", 0))
            pairs = [(p, q), *((mine[k], theirs_state[k]) for k in mine if k != "step")]
            for a, b in pairs:
                same_dtypes = dtype.itemsize > 2  # of the moments, of which float16 has its own
                torch.testing.assert_close(a, b, **TOLERANCES[dtype], check_dtype=same_dtypes)
                with torch.no_grad():
                    a.copy_(b)


def compare_steps(case, dtype, **options):
    """Train two networks for seven steps: one without gradients, two with a layer frozen."""
    pairs = network(dtype), network(dtype)
    ours = case.build(pairs[0][1], **options)
    theirs = case.build_torchs(pairs[1][1])
    for step in range(7):
        for (model, _, values), optimizer in zip(pairs, (ours, theirs), strict=True):
            optimizer.zero_grad()
            if step in (3, 5):
                model[2].requires_grad_(step == 5)
            if step != 2:
                model(values).sum().backward()
            optimizer.step()
        assert_close_and_take_over(ours, theirs, dtype)


@over_inputs(tuple(TORCH_CLASSES))
def test_foreach_matches_forloop(case):
    for dtype in (torch.float64, torch.float32):
        compare_steps(case, dtype)


@over_inputs(("torch-AdamW", "torch-Adam"))
def test_fused_matches_forloop(case):
    """In 16 bits torch rounds to nearest; with an eps that float16 can hold."""
    case.kwargs["eps"] = 0.1
    for dtype in (torch.bfloat16, torch.float16):
        compare_steps(case, dtype, low_precision="nearest")


@over_inputs(tuple(TORCH_CLASSES))
def test_mixed_device_dtype(case):
    """Parameters of all dtypes in one group, as far as one device goes."""
    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    params = [[torch.rand(2, 3, dtype=d, requires_grad=True) for d in dtypes] for _ in range(2)]
    for p, q in zip(*params, strict=True):
        q.data.copy_(p.data)
        p.grad = torch.rand_like(p)
        q.grad = p.grad.clone()
    eps = {"eps": (1e-3, 1e-3)} if case.name == "torch-Adafactor" else {}
    ours = case.build(params[0], low_precision="nearest", **eps)
    theirs = case.build_torchs(params[1], **eps)
    for _ in range(7):
        ours.step()
        theirs.step()
    for p, q in zip(*params, strict=True):
        rtol, atol = torch.testing._comparison.get_tolerances(p.dtype, rtol=None, atol=None)
        torch.testing.assert_close(p, q, rtol=5 * rtol, atol=5 * atol)


@over_inputs(where=lambda case: not case.clips_globally)
def test_one_optimizer_of_all_matches_one_of_each(case):
    """What torch calls the for-loop: that tensors share a launch changes none of them."""
    for dtype in (torch.float64, torch.float32):
        (_, together, _), (_, apart, _) = network(dtype), network(dtype)
        optimizers = case.build(together), [case.build([p]) for p in apart]
        for step in range(3):
            for p, q in zip(together, apart, strict=True):
                p.grad = torch.full_like(p, 0.5 + step)
                q.grad = p.grad.clone()
            for optimizer in (optimizers[0], *optimizers[1]):
                optimizer.step()
        assert_identical([p.detach() for p in together], [p.detach() for p in apart])


# --- learning rate schedulers ---------------------------------------------------------------------

SCHEDULERS = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 0.9**step),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda step: 0.9),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 3, 0.5),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [2, 5], 0.5),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, 0.4, 4),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, 0.4, total_iters=4),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.9),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 8, 0.9),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 5),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 1e-4, 1e-2, 2, cycle_momentum=cycles(opt)),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 1e-2, 12, cycle_momentum=cycles(opt)),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=1, threshold=9.0),
    "SWALR": lambda opt: torch.optim.swa_utils.SWALR(opt, 1e-4, 3),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt,
        [lr_scheduler.ConstantLR(opt, 0.1, 3), lr_scheduler.ExponentialLR(opt, 0.9)],
        milestones=[3],
    ),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.1, 3), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
}


def cycles(optimizer):
    """Return whether a scheduler may cycle momentum: with betas it writes those too."""
    return "betas" in optimizer.defaults


def test_every_scheduler_of_torchs_is_here():
    assert {*lr_scheduler.__all__, "SWALR"} - {"LRScheduler"} <= SCHEDULERS.keys()


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", CLASSES)
def test_schedulers_steer_as_they_steer_torch(name, scheduler, capturable):
    """The group's numbers are those that torch's optimizer is given, and steps follow them."""
    model, by_hand, theirs = (Regression() for _ in range(3))
    for other in (by_hand, theirs):
        for p, q in zip(other.params, model.params, strict=True):
            p.data.copy_(q.data)
        other.input = model.input
    options = {"relative_step": False} if name == "Adafactor" else {}
    lr = "learning_rate" if name == "AdamWeightDecay" else "lr"
    ours = CLASSES[name](model.params, **{lr: 1e-2}, **options, capturable=capturable)
    hand = CLASSES[name](by_hand.params, **{lr: 1e-2}, **options)
    torchs = torch.optim.AdamW(theirs.params, lr=1e-2)
    schedulers = [SCHEDULERS[scheduler](each) for each in (ours, torchs)]
    for _ in range(10):
        (group,), (expected,), (set_by_hand,) = (o.param_groups for o in (ours, torchs, hand))
        assert float(group["lr"]) == pytest.approx(float(expected["lr"]), rel=1e-6)
        assert torch.is_tensor(group["lr"]) == capturable
        set_by_hand["lr"] = float(group["lr"])
        if "betas" in group:
            assert tuple(map(float, group["betas"])) == pytest.approx(expected["betas"])
            set_by_hand["betas"] = group["betas"]
        for each, optimizer in ((model, ours), (theirs, torchs), (by_hand, hand)):
            each.train(optimizer, 1)
        torch.testing.assert_close(model.params, by_hand.params, rtol=1e-6, atol=1e-7)
        for each in schedulers:
            each.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
