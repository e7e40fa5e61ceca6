"""Which parameters decay: the groups of `param_groups_weight_decay`."""

import re

import pytest
import torch
from cases import device_of, each_backend
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


def named(name):
    """A module of a class of this name that holds a matrix."""
    module = type(name, (nn.Module,), {})()
    module.matrix = nn.Parameter(torch.ones(2, 2))
    return module


# Of torch, torchvision, timm, diffusers, transformers, apex, mamba and handwritten models.
NORMS = """
    LayerNorm LayerNorm2d LayerNormFp32 LayerNorm1P LayerNormNd BiasFree_LayerNorm
    LayerNormalization RMSNorm LlamaRMSNorm T5LayerNorm RmsNorm RMSNormGated
    Qwen3NextRMSNormGated Exaone4_5_RMSNorm AdaRmsNorm MixedFusedLayerNorm FusedRMSNorm
    GroupNorm1 GroupNormAct MaskedGroupNorm RMSNormPerHead BatchNorm2d SyncBatchNorm
    BatchNormAct2d FrozenBatchNorm2d FrozenBatchNormAct2d Norm norm L2Norm ScaleNorm ActNorm
    GlobalResponseNorm InstanceNormalisation AutoformerLayernorm layernorm layer_norm
    Batchnorm2d
"""

# Not norms, though the word is in there somewhere; the second half is of the same packages.
OTHERS = """
    AbnormalityScorer NormalizingFlow Normalizer NormalHead LogNormal Abnorm Subnorm Enormous Norma
    NormedEmbedding LayerNormLinear LayerNormMLP LayerNormLSTMCell RobertaPreLayerNormLMHead
    ForNormalEstimation ConvNormActivation WeightNorm LinearWeightNorm SpectralNorm
"""


@pytest.mark.parametrize("name", NORMS.split())
def test_classes_called_norms_do_not_decay(name):
    (group,) = param_groups_weight_decay(named(name), 0.1)
    assert group["weight_decay"] == 0.0


@pytest.mark.parametrize("name", OTHERS.split())
def test_classes_with_norm_inside_another_name_decay(name):
    (group,) = param_groups_weight_decay(named(name), 0.1)
    assert group["weight_decay"] == 0.1


@pytest.mark.parametrize("base", [nn.LayerNorm, nn.RMSNorm])
def test_torchs_norms_do_not_decay_under_another_name(base):
    Gain = type("Gain", (base,), {})
    (group,) = param_groups_weight_decay(Gain((2, 2)), 0.1)
    assert group["weight_decay"] == 0.0


@pytest.mark.parametrize("base", [nn.SyncBatchNorm, nn.BatchNorm1d, nn.InstanceNorm2d])
def test_torchs_batch_norms_do_not_decay_under_another_name(base):
    gain = type("Gain", (base,), {})(2)
    gain.matrix = nn.Parameter(torch.ones(2, 2))
    (group,) = param_groups_weight_decay(gain, 0.1)
    assert group["weight_decay"] == 0.0


def wrapped():
    return nn.ModuleDict({"model": Block(), "weight": nn.ParameterDict({"of": torch.ones(2, 2)})})


EXEMPTED = {
    "wte.weight": ["model.wte.weight"],
    "model.wte.weight": ["model.wte.weight"],
    "wte": ["model.wte.weight"],
    "model.wte": ["model.wte.weight"],
    "weight.of": ["weight.of"],
    "of": ["weight.of"],
    "model": [f"model.{name}" for name in DECAYING],
    "weight": ["weight.of", *(f"model.{name}" for name in DECAYING)],
}


@pytest.mark.parametrize("entry", EXEMPTED)
def test_more_names_may_be_kept_from_decaying(entry):
    decaying, still = names(param_groups_weight_decay(wrapped(), 0.1))
    groups = param_groups_weight_decay(wrapped(), 0.1, [entry])
    found = {g["weight_decay"]: set(g["param_names"]) for g in groups}
    assert found[0.0] == {*still, *EXEMPTED[entry]}
    assert found.get(0.1, set()) == set(decaying) - set(EXEMPTED[entry])


@pytest.mark.parametrize("kind", [list, tuple, set, iter])
def test_names_come_in_any_iterable(kind):
    groups = param_groups_weight_decay(Block(), 0.1, kind(["wte", "head.weight"]))
    assert names(groups)[0] == ["conv.weight", "proj.weight"]


MISTAKES = {
    "te": "did you mean 'wte'?",
    "te.weight": "did you mean 'wte.weight'",
    "wte.weigth": "did you mean 'wte.weight'",
    "proj_": "did you mean 'proj'",
    "wte.": "the first of its 11 parameters: 'scale'",
    "embedding": "the first of its 11 parameters: 'scale', 'bias', 'wte.weight'",
    "": "the first of its 11 parameters: ",
    ".": "the first of its 11 parameters: ",
}


@pytest.mark.parametrize("entry", MISTAKES)
def test_a_name_of_nothing_is_a_mistake(entry):
    with pytest.raises(ValueError) as error:
        param_groups_weight_decay(Block(), 0.1, ["wte", entry])
    assert f"no_decay[1] is {entry!r}, but no parameter" in str(error.value)
    assert MISTAKES[entry] in str(error.value)


def test_a_name_is_a_mistake_where_there_are_no_parameters():
    with pytest.raises(ValueError, match="the first of its 0 parameters: none"):
        param_groups_weight_decay(nn.ReLU(), 0.1, ["weight"])


NO_LISTS = {
    "a string": ("weight", "no_decay is the string 'weight'; pass a list, no_decay=['weight']"),
    "none": (None, "no_decay is None; pass a list of names, as no_decay=['embeddings']"),
    "a pattern": (re.compile("bias"), "no_decay is re.compile('bias'); pass a list of names"),
    "parameters": (
        [nn.Parameter(torch.ones(1))],
        "no_decay[0] is of type Parameter; pass the name",
    ),
    "modules": (["head", nn.Embedding(2, 2)], "no_decay[1] is of type Embedding; pass the name"),
}


@pytest.mark.parametrize("no_decay,message", NO_LISTS.values(), ids=list(NO_LISTS))
def test_no_decay_is_a_list_of_names(no_decay, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        param_groups_weight_decay(Block(), 0.1, no_decay)


def test_the_model_is_a_module():
    with pytest.raises(TypeError, match="model is of type generator; pass the module itself"):
        param_groups_weight_decay(Block().named_parameters(), 0.1)


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


@each_backend
def test_names_choose_what_decays(backend: str) -> None:
    names = ["encoder.weight", "encoder.bias", "LayerNorm.weight", "LayerNorm.special"]
    device = device_of(backend)
    params = [nn.Parameter(torch.full((3,), 2.0, device=device)) for _ in names]
    optimizer = AdamWeightDecay(
        zip(names, params, strict=True),
        learning_rate=0.1,
        weight_decay_rate=0.5,
        include_in_weight_decay=["special$"],
        exclude_from_weight_decay=["LayerNorm", "bias"],
        backend=backend,
    )
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert [round(p[0].item(), 5) for p in params] == [1.9, 2.0, 2.0, 1.9]
