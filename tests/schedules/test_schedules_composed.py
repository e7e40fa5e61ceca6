"""Our schedules within SequentialLR and ChainedScheduler: resumed runs against uninterrupted ones.

Every run is made twice, with our schedules and with torch's LambdaLR of the same functions.
"""

import copy
import warnings
from functools import partial

import pytest
import torch
from schedule_cases import sgd
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    SequentialLR,
    StepLR,
)

import fused_optim
from fused_optim.schedules import AdafactorSchedule, lambdas
from fused_optim.schedules.build import lambda_lr

WARMUP = partial(lambdas.constant_with_warmup, num_warmup_steps=4, warmup_start_ratio=0.0)
COSINE = partial(lambdas.cosine_with_warmup, num_warmup_steps=0, num_training_steps=9)
FALL = partial(
    lambdas.linear_with_warmup, num_warmup_steps=0, num_training_steps=4, warmup_start_ratio=0.0
)
STEPS = 13
POINTS = (0, 1, 3, 4, 5, 6, 8, 9, 12)  # where runs are resumed: around all milestones


def reversed_construction(ours, o):
    """The schedule that comes first is constructed last."""
    cosine = ours(o, COSINE)
    return SequentialLR(o, [ours(o, WARMUP), cosine], [4])


# Each builds a scheduler of `optimizer`; `ours` makes a schedule, ours or torch's, of a function.
OURS_ALONE = {
    "one schedule": lambda ours, o: ours(o, WARMUP),
    "warm-up, cosine": lambda ours, o: SequentialLR(o, [ours(o, WARMUP), ours(o, COSINE)], [4]),
    "cosine made before the warm-up": reversed_construction,
    "three, the second falls to 0": lambda ours, o: SequentialLR(
        o, [ours(o, WARMUP), ours(o, FALL), ours(o, COSINE)], [3, 8]
    ),
    "constants, which all have one rate": lambda ours, o: SequentialLR(
        o, [ours(o, lambdas.constant), ours(o, FALL), ours(o, lambdas.constant)], [2, 6]
    ),
    "a skipped one: both milestones are 4": lambda ours, o: SequentialLR(
        o, [ours(o, WARMUP), ours(o, FALL), ours(o, COSINE)], [4, 4]
    ),
    "SequentialLR in SequentialLR": lambda ours, o: SequentialLR(
        o,
        [SequentialLR(o, [ours(o, WARMUP), ours(o, lambdas.constant)], [4]), ours(o, COSINE)],
        [8],
    ),
    "two chained": lambda ours, o: ChainedScheduler([ours(o, WARMUP), ours(o, COSINE)]),
}
MIXED = {
    "LinearLR, cosine": lambda ours, o: SequentialLR(
        o, [LinearLR(o, 0.1, 1.0, 4), ours(o, COSINE)], [4]
    ),
    "warm-up, CosineAnnealingLR": lambda ours, o: SequentialLR(
        o, [ours(o, WARMUP), CosineAnnealingLR(o, 9)], [4]
    ),
    "warm-up, LambdaLR, cosine": lambda ours, o: SequentialLR(
        o, [ours(o, WARMUP), LambdaLR(o, FALL), ours(o, COSINE)], [3, 7]
    ),
    "warm-up, constant, LinearLR to 0": lambda ours, o: SequentialLR(
        o, [ours(o, WARMUP), ours(o, lambdas.constant), LinearLR(o, 1.0, 0.0, 4)], [4, 6]
    ),
    "ConstantLR, cosine, StepLR": lambda ours, o: SequentialLR(
        o, [ConstantLR(o, 0.5, 3), ours(o, COSINE), StepLR(o, 2)], [3, 8]
    ),
    "chained with ExponentialLR": lambda ours, o: ChainedScheduler(
        [ours(o, WARMUP), ExponentialLR(o, 0.9)]
    ),
    "chained after ExponentialLR": lambda ours, o: ChainedScheduler(
        [ExponentialLR(o, 0.9), ours(o, WARMUP)]
    ),
    "chained with a SequentialLR": lambda ours, o: ChainedScheduler(
        [SequentialLR(o, [ours(o, WARMUP), ours(o, COSINE)], [4]), ExponentialLR(o, 0.9)]
    ),
    "a chain in SequentialLR": lambda ours, o: SequentialLR(
        o, [ChainedScheduler([ours(o, WARMUP), ExponentialLR(o, 0.9)]), ours(o, COSINE)], [5]
    ),
}


def adamw(**options):
    param = torch.nn.Parameter(torch.zeros(1))
    param.grad = torch.zeros(1)
    return fused_optim.AdamW([param], **options)


OPTIMIZERS = {
    "two groups": lambda: sgd(10.0, 0.3),
    "tensor": lambda: sgd(torch.tensor(10.0, dtype=torch.float64)),
    "float32 tensor": lambda: sgd(torch.tensor(0.3)),
    "capturable": lambda: adamw(lr=10.0, capturable=True),
}


def made(make, optimizer, with_torch):
    """The scheduler; with_torch makes ours torch's own LambdaLR."""
    ours = LambdaLR if with_torch else partial(lambda_lr, last_epoch=-1)
    return make(ours, optimizer)


def rates(scheduler, steps):
    seen = []
    for _ in range(steps):
        seen.append([float(group["lr"]) for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def of_groups(run):
    """Each group's rates."""
    return list(zip(*run, strict=True))


def saved_at(make, new_optimizer, at, with_torch=False):
    old = made(make, new_optimizer(), with_torch)
    rates(old, at)
    return copy.deepcopy([old.optimizer.state_dict(), old.state_dict()])


def resumed(make, new_optimizer, at, order, with_torch=False):
    """The rates after a resume; "ocs": load the optimizer, construct the schedule, load it."""
    saved = saved_at(make, new_optimizer, at, with_torch)
    optimizer, scheduler = new_optimizer(), None
    for what in order:
        if what == "c":
            scheduler = made(make, optimizer, with_torch)
        elif what == "o":
            optimizer.load_state_dict(saved[0])
        else:
            scheduler.load_state_dict(saved[1])
    return rates(scheduler, STEPS - at)


@pytest.fixture(autouse=True)
def _without_torchs_warnings():
    with warnings.catch_warnings():
        # SequentialLR passes an epoch to its schedules; a resumed optimizer has not stepped yet.
        warnings.simplefilter("ignore", UserWarning)
        yield


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", OURS_ALONE | MIXED)
def test_resumed_rates_are_the_uninterrupted_runs(name, optimizer):
    make, new_optimizer = (OURS_ALONE | MIXED)[name], OPTIMIZERS[optimizer]
    expected = rates(made(make, new_optimizer(), with_torch=False), STEPS)
    assert expected == rates(made(make, new_optimizer(), with_torch=True), STEPS)
    for at in POINTS:
        for order in ("cos", "cso"):
            assert resumed(make, new_optimizer, at, order) == expected[at:], (order, at)
            # torch loses nothing here, so a difference would be ours.
            assert resumed(make, new_optimizer, at, order, with_torch=True) == expected[at:]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", OURS_ALONE)
def test_schedules_constructed_for_a_restored_optimizer_give_its_rates_back(name, optimizer):
    """torch is wrong here: it leaves the rate of step 0 for the first resumed step."""
    make, new_optimizer = OURS_ALONE[name], OPTIMIZERS[optimizer]
    expected = rates(made(make, new_optimizer(), with_torch=False), STEPS)
    for at in POINTS:
        for order in ("ocs", "ocos", "ocso"):
            assert resumed(make, new_optimizer, at, order) == expected[at:], (order, at)


@pytest.mark.parametrize("name", MIXED)
def test_beside_torchs_a_late_construction_is_no_worse_than_torchs(name):
    """torch is wrong here for good where LinearLR and the like multiply the rate that they find.

    It is torch's schedulers that would have to give it back, so ours may be as wrong as torch's.
    """
    make, new_optimizer = MIXED[name], OPTIMIZERS["two groups"]
    expected = rates(made(make, new_optimizer(), with_torch=False), STEPS)
    for at in POINTS:
        theirs = resumed(make, new_optimizer, at, "ocs", with_torch=True)
        ours = resumed(make, new_optimizer, at, "ocs")
        runs = map(of_groups, (ours, expected[at:], theirs))
        for group, right, torchs in zip(*runs, strict=True):
            assert group in (right, torchs), at


@pytest.mark.parametrize("name", OURS_ALONE)
def test_a_new_optimizer_takes_the_loaded_schedules_rate_at_once(name):
    make, new_optimizer = OURS_ALONE[name], OPTIMIZERS["two groups"]
    expected = rates(made(make, new_optimizer(), with_torch=False), STEPS)
    for at in POINTS:
        assert resumed(make, new_optimizer, at, "cs") == expected[at:], at


def test_loading_keeps_the_tensor_that_a_graph_reads():
    make, new_optimizer = OURS_ALONE["warm-up, cosine"], OPTIMIZERS["capturable"]
    saved = saved_at(make, new_optimizer, 6)
    optimizer = new_optimizer()
    optimizer.load_state_dict(saved[0])
    lr = optimizer.param_groups[0]["lr"]
    expected = float(lr)
    scheduler = made(make, optimizer, with_torch=False)
    scheduler.load_state_dict(saved[1])
    assert optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == expected != 10.0


def test_a_copied_schedule_still_knows_whether_its_optimizer_was_loaded():
    make, new_optimizer = OURS_ALONE["warm-up, cosine"], OPTIMIZERS["two groups"]
    expected = rates(made(make, new_optimizer(), with_torch=False), STEPS)
    saved = saved_at(make, new_optimizer, 2)
    scheduler = copy.deepcopy(make(partial(lambda_lr, last_epoch=-1), new_optimizer()))
    scheduler.optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    assert rates(scheduler, STEPS - 2) == expected[2:]


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("order", ["cos", "cso", "ocs"])
def test_adafactors_report_resumes_with_the_rate_in_the_group(order, at):
    """Also where another scheduler has multiplied that rate, which is then not the report's."""

    def new_optimizer():
        param = torch.nn.Parameter(torch.ones(2, 2))
        param.grad = torch.ones(2, 2)
        return fused_optim.Adafactor([param])

    def alone(_, o):
        return AdafactorSchedule(o, 0.5)

    def chained(_, o):
        return ChainedScheduler([AdafactorSchedule(o, 0.5), ExponentialLR(o, 0.9)])

    for make in (alone, chained) if order != "ocs" else (alone,):
        expected = rates(made(make, new_optimizer(), with_torch=False), STEPS)
        assert resumed(make, new_optimizer, at, order)[0] == expected[at], make


def test_a_schedule_beside_adafactors_report_takes_its_rate_at_once():
    """The report's construction must not make a new optimizer look like a restored one."""

    def new_schedule():
        param = torch.nn.Parameter(torch.ones(2, 2))
        optimizer = fused_optim.Adafactor([param], lr=0.5, relative_step=False)
        AdafactorSchedule(optimizer)
        return lambda_lr(optimizer, WARMUP, -1)

    old, new = new_schedule(), new_schedule()
    rates(old, 3)
    new.load_state_dict(old.state_dict())
    assert rates(new, 1) == [[0.375]]


def test_rates_of_numbers_return_to_tensors_that_round_them():
    saved = saved_at(OURS_ALONE["one schedule"], lambda: adamw(lr=0.3), 3)
    optimizer = adamw(lr=torch.tensor(1.0), capturable=True)
    optimizer.load_state_dict(saved[0])
    scheduler = made(OURS_ALONE["one schedule"], optimizer, with_torch=False)
    scheduler.load_state_dict(saved[1])
    assert optimizer.param_groups[0]["lr"] == torch.tensor(0.3 * 3 / 4)
