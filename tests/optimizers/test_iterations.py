"""AdamWeightDecay's one count of iterations: groups added later, unequal counts, loaded dicts."""

import copy
import pickle

import pytest
import torch
from optimizer_table import assert_identical, snapshot

import fused_optim
from fused_optim import AdamWeightDecay, PolynomialDecay, WarmUp

SCHEDULE = WarmUp(1.0, PolynomialDecay(1.0, 90, 0.0), 10)


def parameter():
    p = torch.nn.Parameter(torch.ones(4))
    p.grad = torch.ones(4)
    return p


def trained(steps, groups=1, **options):
    optimizer = AdamWeightDecay(
        [{"params": [parameter()]} for _ in range(groups)], **{"learning_rate": SCHEDULE, **options}
    )
    for _ in range(steps):
        optimizer.step()
    return optimizer


def new(groups=2, **options):
    return trained(0, groups, **options)


def counts(optimizer):
    return [group["iterations"] for group in optimizer.param_groups]


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("steps", [0, 1, 5, 20])
@pytest.mark.parametrize("own", [{}, {"iterations": 3}, {"iterations": 77, "lr": 0.125}])
def test_a_group_added_later_joins_at_the_optimizers_count(steps, own):
    optimizer = trained(steps, groups=2)
    optimizer.add_param_group({"params": [parameter()], **own})
    assert counts(optimizer) == [steps] * 3
    assert rates(optimizer)[2] == (SCHEDULE(steps) if steps else own.get("lr", 0.0))
    for count in range(steps, steps + 3):
        optimizer.step()
        assert counts(optimizer) == [count + 1] * 3
        if steps:
            assert rates(optimizer) == [SCHEDULE(count)] * 3


def test_create_optimizers_schedule_does_not_start_anew_for_an_added_group():
    optimizer, schedule = fused_optim.create_optimizer([("a", parameter())], 1.0, 100, 10)
    for _ in range(20):
        optimizer.step()
    optimizer.add_param_group({"params": [("b", parameter())]})
    optimizer.step()
    assert rates(optimizer) == [schedule(20)] * 2 == [1 - 10 / 90] * 2
    assert counts(optimizer) == [21] * 2


def test_decay_follows_the_optimizers_count_in_an_added_group():
    """Adam's first update is the learning rate, which is lr / (1 + decay * iterations)."""
    optimizer = trained(20, learning_rate=0.5, decay=0.1, epsilon=1e-12)
    added = parameter()
    optimizer.add_param_group({"params": [added]})
    optimizer.step()
    assert added.tolist() == [pytest.approx(1 - 0.5 / (1 + 0.1 * 20), rel=1e-6)] * 4


def test_a_group_that_is_refused_changes_nothing():
    optimizer = trained(5)
    with pytest.raises(ValueError, match="weight_decay_rate"):
        optimizer.add_param_group({"params": [parameter()], "weight_decay": "much"})
    assert counts(optimizer) == [5]
    optimizer.step()
    assert rates(optimizer) == [SCHEDULE(5)]


def test_groups_of_the_constructor_share_the_first_ones_count():
    groups = [{"params": [parameter()], "iterations": count} for count in (4, 0, 9)]
    optimizer = AdamWeightDecay(groups, SCHEDULE)
    assert counts(optimizer) == [4, 4, 4]


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("edited", [0, 1])
def test_an_edited_count_holds_for_all_groups_if_it_is_the_largest(edited, warm):
    optimizer = trained(5, groups=2)
    if warm:  # a step of the steady state is another path
        optimizer.step()
    optimizer.param_groups[edited]["iterations"] = 50
    optimizer.param_groups[1 - edited]["iterations"] = 2
    optimizer.step()
    assert counts(optimizer) == [51, 51]
    assert rates(optimizer) == [SCHEDULE(50)] * 2


@pytest.mark.parametrize("saved_counts", [(20, 1), (1, 20), (20, 20)])
@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_unequal_counts_of_a_dict_become_the_largest(saved_counts, decay):
    """As 0.1.0 saved them, where a group that was added had a count of its own."""
    old = trained(20, groups=2, decay=decay)
    saved = copy.deepcopy(old.state_dict())
    for group, count in zip(saved["param_groups"], saved_counts, strict=True):
        group["iterations"] = count
    optimizer = new(decay=decay)
    optimizer.load_state_dict(saved)
    assert counts(optimizer) == [20, 20]
    shown = [group["params"][0] for o in (old, optimizer) for group in o.param_groups]
    for first, second in zip(shown[:2], shown[2:], strict=True):
        second.data.copy_(first)
    for count in (20, 21):
        old.step()
        optimizer.step()
        assert rates(optimizer) == [SCHEDULE(count)] * 2
        assert all(map(torch.equal, shown[:2], shown[2:]))


@pytest.mark.parametrize("group_steps", [(3, 7), (7, 3)])
def test_counts_of_a_peers_groups_become_the_largest(group_steps):
    """apex counts in its groups, which may have started at different times."""
    state = {i: {"exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)} for i in range(2)}
    groups = [{"params": [i], "lr": 1.0, "step": step} for i, step in enumerate(group_steps)]
    optimizer = new()
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    assert counts(optimizer) == [7, 7]
    optimizer.step()
    assert rates(optimizer) == [SCHEDULE(7)] * 2


def test_a_resumed_run_with_an_added_group_is_the_uninterrupted_one():
    old = trained(20)
    old.add_param_group({"params": [parameter()]})
    old.step()
    saved = copy.deepcopy(old.state_dict())
    optimizer = new()
    optimizer.load_state_dict(saved)
    for other in (optimizer, pickle.loads(pickle.dumps(old)), copy.deepcopy(old)):
        for group in other.param_groups:
            group["params"][0].grad = torch.ones(4)
        other.step()
        assert counts(other) == [22, 22]
        assert rates(other) == [SCHEDULE(21)] * 2


@pytest.mark.parametrize("count", ["many", -1, 0.5, float("nan"), float("inf"), None])
def test_what_is_no_count_is_refused(count):
    message = r"Invalid iterations: .* - should be a whole number, 0 or more"
    with pytest.raises(ValueError, match=message):
        AdamWeightDecay([{"params": [parameter()], "iterations": count}])
    optimizer = trained(5)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["iterations"] = count
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert counts(optimizer) == [5]


@pytest.mark.parametrize("rate", [float("nan"), -1.0, None, "fast"])
@pytest.mark.parametrize("good_steps", [0, 1, 3])
def test_a_schedule_that_returns_no_rate_is_refused_before_anything_changes(rate, good_steps):
    params = [torch.nn.Parameter(torch.ones(3))]
    optimizer = fused_optim.AdamWeightDecay(
        params, lambda step: rate if step >= max(1, good_steps) else 0.1
    )
    for p in params:
        p.grad = torch.ones(3)
    for _ in range(max(1, good_steps)):
        optimizer.step()
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"learning_rate\(\d\) returned a bad rate. Invalid"):
        optimizer.step()
    assert_identical(snapshot(optimizer), before)
