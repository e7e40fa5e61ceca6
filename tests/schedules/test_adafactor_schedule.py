"""AdafactorSchedule over a stand-in for Adafactor: what is reported, and what is written where."""

import io
import pickle
import warnings

import pytest
import torch

from fused_optim.schedules import AdafactorSchedule, get_adafactor_schedule, get_scheduler


class FakeAdafactor(torch.optim.Optimizer):
    """Adafactor's groups and its report, with a made-up alpha: the step count over 8.

    As Adafactor with `scale_parameter=True`, it multiplies `group["lr"]` into alpha where
    `relative_step` is False, so that a schedule that writes alpha back would compound it.
    """

    def __init__(self, params, lr=None, relative_step=True):
        super().__init__(params, {"lr": lr, "relative_step": relative_step})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                scale = 1.0 if group["relative_step"] else float(group["lr"])
                state["alpha"] = torch.tensor(state["step"] / 8 * scale, dtype=torch.float64)

    def effective_lr(self, group):
        state = self.state.get(group["params"][0])
        return float(state["alpha"]) if state else None


class TensorReport(FakeAdafactor):
    """Reports 0-d tensors, as transformers' does."""

    def effective_lr(self, group):
        alpha = super().effective_lr(group)
        return None if alpha is None else torch.tensor(alpha)


def parameter(grad=True):
    p = torch.nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2) if grad else None
    return p


def lrs(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("make", [AdafactorSchedule, get_adafactor_schedule])
def test_construction_reports_and_writes_initial_lr(make):
    optimizer = FakeAdafactor([{"params": [parameter()]}, {"params": [parameter()]}])
    schedule = make(optimizer, 0.25)
    assert isinstance(schedule, AdafactorSchedule)
    assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
    assert schedule.get_last_lr() == schedule.get_lr() == lrs(optimizer) == [0.25, 0.25]
    assert schedule.base_lrs == [0.25, 0.25]
    assert schedule.last_epoch == 0
    assert all("initial_lr" not in group for group in optimizer.param_groups)
    assert make(FakeAdafactor([parameter()])).get_last_lr() == [0.0]


@pytest.mark.parametrize("optimizer_class", [FakeAdafactor, TensorReport])
def test_each_step_reports_the_last_alpha_as_floats(optimizer_class):
    optimizer = optimizer_class([parameter()])
    schedule = AdafactorSchedule(optimizer)
    for step in (1, 2, 3):
        optimizer.step()
        schedule.step()
        assert schedule.get_last_lr() == schedule.get_lr() == lrs(optimizer) == [step / 8]
        assert type(schedule.get_last_lr()[0]) is type(schedule.get_lr()[0]) is float
        assert schedule.last_epoch == step


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_changes_nothing(set_to_none):
    optimizer = FakeAdafactor([parameter()])
    schedule = AdafactorSchedule(optimizer, 0.5)
    optimizer.step()
    optimizer.zero_grad(set_to_none=set_to_none)
    schedule.step()
    assert schedule.get_last_lr() == schedule.get_lr() == [0.125]


def test_stepping_before_the_optimizer_reports_initial_lr_without_a_warning():
    """Accumulation, or a step that AMP skipped: transformers raises KeyError: 'step'."""
    optimizer = FakeAdafactor([parameter()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = AdafactorSchedule(optimizer, 0.5)
        schedule.step()
        schedule.step()
        assert schedule.get_last_lr() == [0.5]
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == [0.125]


def test_one_rate_per_group_always():
    """A frozen first parameter, an empty group, a group added later: transformers loses them."""
    optimizer = FakeAdafactor([{"params": [parameter(grad=False)]}, {"params": [parameter()]}])
    schedule = AdafactorSchedule(optimizer, 0.5)
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == lrs(optimizer) == [0.5, 0.125]
    optimizer.add_param_group({"params": [parameter()]})
    optimizer.param_groups[1]["params"] = []
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == lrs(optimizer) == [0.5, 0.5, 0.125]


def test_a_given_rate_is_reported_through_but_never_written():
    given = {"params": [parameter()], "lr": 0.5, "relative_step": False}
    optimizer = FakeAdafactor([given, {"params": [parameter()]}])
    schedule = AdafactorSchedule(optimizer)
    assert lrs(optimizer) == [0.5, 0.0]
    for step in (1, 2, 3):
        optimizer.step()
        schedule.step()
        assert schedule.get_last_lr() == [step / 16, step / 8]  # a write-back would compound
        assert lrs(optimizer) == [0.5, step / 8]


def test_another_scheduler_may_drive_a_given_rate():
    optimizer = FakeAdafactor([parameter()], lr=0.5, relative_step=False)
    linear = get_scheduler("linear", optimizer, 0, 4)
    schedule = AdafactorSchedule(optimizer)
    seen = []
    for _ in range(4):
        seen.append(lrs(optimizer)[0])
        optimizer.step()
        linear.step()
        schedule.step()
    assert seen == [0.5, 0.375, 0.25, 0.125]
    # What `last_epoch=` resumes from is the other scheduler's, and still there.
    assert optimizer.param_groups[0]["initial_lr"] == 0.5


def test_a_tensor_rate_is_filled_in_place_or_left_alone():
    rates = [torch.tensor(0.5), torch.tensor(0.25)]
    optimizer = FakeAdafactor(
        [
            {"params": [parameter()], "lr": rates[0]},
            {"params": [parameter()], "lr": rates[1], "relative_step": False},
        ]
    )
    schedule = AdafactorSchedule(optimizer)
    optimizer.step()
    schedule.step()
    assert lrs(optimizer)[0] is rates[0]
    assert [float(rate) for rate in rates] == [0.125, 0.25]
    assert schedule.get_last_lr() == [0.125, 0.03125]


@pytest.mark.parametrize("wrap", [lambda o: o, lambda o: torch.nn.Linear(1, 1), lambda o: None])
def test_an_optimizer_without_a_report_is_refused_untouched(wrap):
    optimizer = wrap(torch.optim.SGD([parameter()], lr=0.1))
    with pytest.raises(TypeError, match=r"no effective_lr.*fused_optim\.Adafactor"):
        AdafactorSchedule(optimizer)
    if isinstance(optimizer, torch.optim.Optimizer):
        assert optimizer.param_groups[0]["lr"] == 0.1
        assert "initial_lr" not in optimizer.param_groups[0]


def test_state_is_plain_and_resumes():
    old = AdafactorSchedule(FakeAdafactor([parameter()]), 0.5)
    for _ in range(3):
        old.optimizer.step()
        old.step()
    file = io.BytesIO()
    torch.save([old.optimizer.state_dict(), old.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert {type(value) for value in saved[1]["_last_lr"] + saved[1]["base_lrs"]} == {float}
    assert saved[1]["lr_lambdas"] == [None]
    assert saved[1]["_step_count"] == 4  # torch counts the construction too

    new = AdafactorSchedule(FakeAdafactor([parameter()]))
    new.optimizer.load_state_dict(saved[0])
    new.load_state_dict(saved[1])
    assert new.last_epoch == 3
    assert new.get_last_lr() == new.get_lr() == [0.375]
    for schedule in (old, new, pickle.loads(pickle.dumps(new))):
        schedule.optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
        schedule.optimizer.step()
        schedule.step()
        assert schedule.get_last_lr() == [0.5]
        assert schedule.last_epoch == 4


def test_transformers_state_loads():
    theirs = pytest.importorskip("transformers.optimization")
    p = parameter(grad=False)
    optimizer = theirs.Adafactor([p])
    schedule = theirs.AdafactorSchedule(optimizer, 0.5)
    p.grad = torch.ones(2)
    optimizer.step()
    schedule.step()
    state = schedule.state_dict()
    assert isinstance(state["_last_lr"][0], torch.Tensor)
    ours = AdafactorSchedule(FakeAdafactor([parameter()]))
    ours.load_state_dict(state)
    assert ours.last_epoch == 1
    assert ours.get_last_lr() == [pytest.approx(0.01)]
    assert type(ours.get_last_lr()[0]) is float
    # Its own parts: the fallback for groups without a step is this schedule's.
    assert ours.get_lr() == [0.0]


def test_step_to_an_epoch():
    schedule = AdafactorSchedule(FakeAdafactor([parameter()]))
    schedule.step(7)
    assert schedule.last_epoch == 7
    schedule.step()
    assert schedule.last_epoch == 8
