"""Which parameters decay: the groups of `param_groups_weight_decay`."""

import pytest
import torch
from torch import nn

from fused_optim import AdamW, AdamWeightDecay, param_groups_weight_decay


class RMSNorm(nn.Module):
    """A norm as models bring their own, with a gain that is a matrix for once."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2, 4))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(7, 4)
        self.input_norm = nn.LayerNorm(4)
        self.rms = RMSNorm()
        self.proj = nn.Linear(4, 4)
        self.conv = nn.Conv2d(1, 2, 3)
        self.head = nn.Linear(4, 7, bias=False)
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.ones(3, 3))


DECAYING = ["wte.weight", "proj.weight", "conv.weight", "head.weight"]
STILL = ["scale", "bias", "input_norm.weight", "input_norm.bias", "rms.gain", "proj.bias"]
STILL += ["conv.bias"]


def names(groups):
    return [sorted(group["param_names"]) for group in groups]


def test_matrices_decay_vectors_norms_and_biases_do_not():
    model = Block()
    groups = param_groups_weight_decay(model, 0.1)
    assert names(groups) == [sorted(DECAYING), sorted(STILL)]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    by_name = dict(model.named_parameters())
    for group in groups:
        assert group.keys() == {"params", "param_names", "weight_decay"}
        pairs = zip(group["param_names"], group["params"], strict=True)
        assert all(by_name[name] is p for name, p in pairs)


@pytest.mark.parametrize(
    "norm",
    [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm2d(4), nn.InstanceNorm1d(4, affine=True)],
)
def test_torchs_norms_do_not_decay(norm):
    assert [group["weight_decay"] for group in param_groups_weight_decay(norm, 0.1)] == [0.0]


def test_more_names_may_be_kept_from_decaying():
    for no_decay in (["wte.weight", "head.weight"], ("wte.weight", "weight.of"), "wte.weight"):
        wrapped = nn.ModuleDict(
            {"model": Block(), "weight": nn.ParameterDict({"of": torch.ones(2, 2)})}
        )
        if isinstance(no_decay, str):
            no_decay = [no_decay]
        still = names(param_groups_weight_decay(wrapped, 0.1, no_decay))[1]
        assert {"model.wte.weight"} < set(still)
        assert ("model.head.weight" in still) == ("head.weight" in no_decay)
        assert ("weight.of" in still) == ("weight.of" in no_decay)
        assert "model.proj.weight" not in still


@pytest.mark.parametrize("name", ["te.weight", "wte", "nothing", ""])
def test_a_name_of_nothing_is_a_mistake(name):
    with pytest.raises(ValueError, match=f"no parameter of the model is named {name!r}"):
        param_groups_weight_decay(Block(), 0.1, [name])


def test_a_string_of_names_is_a_mistake():
    with pytest.raises(ValueError, match="no_decay"):
        param_groups_weight_decay(Block(), 0.1, "wte.weight")


def test_frozen_parameters_are_left_out_and_tied_ones_listed_once():
    model = Block()
    model.head.weight = model.wte.weight
    model.proj.requires_grad_(False)
    groups = param_groups_weight_decay(model, 0.1)
    assert names(groups) == [["conv.weight", "wte.weight"], sorted(set(STILL) - {"proj.bias"})]
    assert len({id(p) for g in groups for p in g["params"]}) == 8


def test_names_of_tied_and_frozen_parameters_count_too():
    model = Block()
    model.head.weight = model.wte.weight
    model.proj.requires_grad_(False)
    groups = param_groups_weight_decay(model, 0.1, ["head.weight", "proj.weight"])
    assert names(groups) == [["conv.weight"], sorted({*STILL, "wte.weight"} - {"proj.bias"})]


def test_groups_without_parameters_are_dropped():
    assert names(param_groups_weight_decay(nn.Linear(2, 2, bias=False), 0.1)) == [["weight"]]
    assert param_groups_weight_decay(nn.ReLU(), 0.1) == []
    (still,) = param_groups_weight_decay(nn.LayerNorm(2), 0.1)
    assert still["weight_decay"] == 0.0


def test_optimizers_take_the_groups():
    model = Block()
    optimizer = AdamW(param_groups_weight_decay(model, 0.5), lr=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        factor = 1.0 - 0.1 * 0.5 if name in DECAYING else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor)
    named = AdamWeightDecay(
        param_groups_weight_decay(model, 0.5), exclude_from_weight_decay=["^wte"], learning_rate=0.1
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    named.step()
    assert torch.equal(model.wte.weight, before["wte.weight"])
    assert not torch.equal(model.head.weight, before["head.weight"])
