"""Bad hyperparameters and options: refused at construction, saying what was got and is needed."""

import re

import pytest
import torch
from optimizer_table import assert_identical, every_optimizer, parameters, row, snapshot, train

import fused_optim
from fused_optim import torch_compat

NAN, INF = float("nan"), float("inf")
TWO = torch.ones(2)

ADAM = [
    ({"lr": -1e-3}, r"Invalid learning rate: -0.001 - should be >= 0.0"),
    ({"lr": NAN}, r"Invalid learning rate: nan"),
    ({"lr": None}, r"Invalid learning rate: None - should be a number"),
    ({"lr": "1e-3"}, r"Invalid learning rate: '1e-3'"),
    ({"lr": True}, r"Invalid learning rate: True"),
    ({"lr": TWO}, r"Tensor learning rate must be 1-element, got shape \(2,\)"),
    ({"lr": torch.tensor(-1.0)}, r"Invalid learning rate: -1.0"),
    ({"betas": (1.0, 0.9)}, r"Invalid beta parameter at index 0: 1.0 - should be in \[0.0, 1.0\)"),
    ({"betas": (0.9, -0.1)}, r"Invalid beta parameter at index 1: -0.1"),
    ({"betas": (NAN, 0.9)}, r"Invalid beta parameter at index 0: nan"),
    ({"betas": (None, 0.9)}, r"Invalid beta parameter at index 0: None"),
    ({"betas": (0.9,)}, r"Invalid betas: \(0.9,\) - should be a pair"),
    ({"betas": 0.9}, r"Invalid betas: 0.9"),
    ({"betas": None}, r"Invalid betas: None"),
    ({"eps": -1e-8}, r"Invalid epsilon value: -1e-08 - should be >= 0.0"),
    ({"eps": NAN}, r"Invalid epsilon value: nan"),
    ({"eps": None}, r"Invalid epsilon value: None"),
    ({"weight_decay": NAN}, r"Invalid weight_decay.*: nan"),
    ({"weight_decay": None}, r"Invalid weight_decay.*: None"),
]

COMMON = [
    ({"low_precision": "double"}, r"Invalid low_precision: 'double' - should be one of auto, n"),
    ({"low_precision": None}, r"Invalid low_precision: None"),
    (
        {"state_dtype": torch.float64},
        r"Invalid state_dtype: torch.float64 - should be torch.float32",
    ),
    ({"state_dtype": "bfloat16"}, r"Invalid state_dtype: 'bfloat16'"),
    ({"maximize": 2}, r"Invalid maximize: 2 - should be True or False"),
    ({"capturable": None}, r"Invalid capturable: None"),
]

ADAFACTOR = [
    ({"lr": 1e-3}, r"Cannot combine manual `lr` and `relative_step=True` options.*lr=None"),
    ({"lr": 1e-3, "warmup_init": True}, r"Cannot combine manual `lr`"),
    ({"relative_step": False}, r"relative_step=False needs an lr \(1e-3 is common\)"),
    ({"relative_step": False, "lr": NAN}, r"Invalid learning rate: nan"),
    ({"relative_step": False, "lr": -1.0}, r"Invalid learning rate: -1.0"),
    ({"relative_step": False, "lr": 1.0, "warmup_init": True}, r"`warmup_init=True` requires"),
    ({"relative_step": None}, r"Invalid relative_step: None"),
    ({"scale_parameter": "yes"}, r"Invalid scale_parameter: 'yes'"),
    ({"eps": 1e-30}, r"Invalid eps: 1e-30 - should be a pair"),
    ({"eps": (None, 1e-3)}, r"Invalid eps\[0\]: None"),
    ({"eps": (1e-30, -1.0)}, r"Invalid eps\[1\]: -1.0"),
    ({"clip_threshold": None}, r"Invalid clip_threshold: None - float\('inf'\) turns clipping off"),
    ({"clip_threshold": -1.0}, r"Invalid clip_threshold: -1.0"),
    ({"decay_rate": 0.8}, r"Invalid decay_rate: 0.8 - should be <= 0"),
    ({"beta1": 1.0}, r"Invalid beta1: 1.0 - should be in \[0.0, 1.0\)"),
    ({"beta1": NAN}, r"Invalid beta1: nan"),
    ({"weight_decay": NAN}, r"Invalid weight_decay: nan"),
]

TORCH_ADAFACTOR = [
    ({"lr": NAN}, r"Invalid learning rate: nan"),
    ({"lr": TWO}, r"Tensor learning rate must be 1-element"),
    ({"beta2_decay": 0.8}, r"Invalid beta2_decay: 0.8 - should be <= 0"),
    ({"eps": 1e-3}, r"Invalid eps: 0.001"),
    ({"eps": (-1.0, 1e-3)}, r"Invalid epsilon1: -1.0"),
    ({"eps": (None, None)}, r"Invalid epsilon2: None"),
    ({"d": 0.5}, r"Invalid clipping threshold d: 0.5 - should be >= 1.0"),
    ({"weight_decay": -0.1}, r"Invalid weight_decay: -0.1"),
]

LION = [
    ({"lr": NAN}, r"Invalid learning rate: nan"),
    ({"lr": None}, r"Invalid learning rate: None"),
    ({"betas": (0.9, 1.0)}, r"Invalid beta parameter at index 1: 1.0"),
    ({"betas": 0.9}, r"Invalid betas: 0.9"),
    ({"weight_decay": -0.1}, r"Invalid weight_decay: -0.1"),
    ({"weight_decay": NAN}, r"Invalid weight_decay: nan"),
]

TABLE = [
    (fused_optim.AdamW, [*ADAM, *COMMON, ({"correct_bias": None}, "Invalid correct_bias: None")]),
    (
        torch_compat.Adam,
        [*ADAM, *COMMON, ({"weight_decay": -0.1}, "weight_decay"), ({"amsgrad": 2}, "amsgrad: 2")],
    ),
    (torch_compat.AdamW, [*ADAM, *COMMON, ({"weight_decay": -0.1}, "weight_decay")]),
    (fused_optim.Adafactor, [*ADAFACTOR, *COMMON]),
    (torch_compat.Adafactor, [*TORCH_ADAFACTOR, *COMMON]),
    (fused_optim.Lion, [*LION, *COMMON]),
]
CASES = [
    pytest.param(make, bad, message, id=f"{make.__module__[12:]}-{make.__name__}-{bad}")
    for make, cases in TABLE
    for bad, message in cases
]


@pytest.mark.parametrize("make,bad,message", CASES)
def test_bad_values_are_refused_in_the_constructor_and_in_groups(make, bad, message):
    with pytest.raises(ValueError, match=f"{make.__name__}, group 0: .*{message}"):
        make(parameters(), **bad)
    groups = [{"params": parameters()}, {"params": parameters(), **bad}]
    with pytest.raises(ValueError, match=f"{make.__name__}, group 1: .*{message}"):
        make(groups)


ADAM_WEIGHT_DECAY = [
    ({"learning_rate": NAN}, r"group 0: Invalid learning rate: nan"),
    ({"learning_rate": lambda step: -1.0}, r"group 0: Invalid learning rate: -1.0"),
    ({"beta_1": 1.0}, r"Invalid beta parameter at index 0: 1.0"),
    ({"epsilon": -1.0}, r"Invalid epsilon value: -1.0"),
    ({"weight_decay_rate": NAN}, r"Invalid weight_decay_rate: nan"),
    ({"amsgrad": 2}, r"Invalid amsgrad: 2"),
    ({"clipnorm": -1.0}, r"Expected clipnorm >= 0, received: -1.0"),
    ({"clipvalue": -1.0}, r"Expected clipvalue >= 0, received: -1.0"),
    ({"global_clipnorm": NAN}, r"Expected global_clipnorm >= 0, received: nan"),
    ({"decay": -0.5}, r"Expected decay >= 0, received: -0.5"),
    ({"clipnorm": 1.0, "global_clipnorm": 1.0}, r"more than one of clipnorm, global_clipnorm"),
    (
        {"clipnorm": 1.0, "max_grad_norm": 1.0},
        r"more than one of clipnorm.*max_grad_norm; pass one",
    ),
    ({"include_in_weight_decay": "bias"}, r"patterns must be a list of strings, got 'bias'"),
]


# Ids without values: that of a lambda holds its address, and xdist's workers must agree on ids.
@pytest.mark.parametrize(
    "bad,message", ADAM_WEIGHT_DECAY, ids=["-".join(bad) for bad, _ in ADAM_WEIGHT_DECAY]
)
def test_bad_values_of_adam_weight_decay_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        fused_optim.AdamWeightDecay(parameters(), **bad)


@pytest.mark.parametrize(
    "bad,message",
    [
        ({"betas": (0.9, 1.0)}, r"group 1: Invalid beta parameter at index 1"),
        ({"lr": -1.0}, r"group 1: Invalid learning rate: -1.0"),
        ({"weight_decay": NAN}, r"group 1: Invalid weight_decay_rate: nan"),
        ({"clipvalue": -1.0}, r"group 1: Invalid clipvalue: -1.0"),
    ],
    ids=str,
)
def test_bad_groups_of_adam_weight_decay_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        fused_optim.AdamWeightDecay([{"params": parameters()}, {"params": parameters(), **bad}])


def test_adam_weight_decay_follows_keras_with_unknown_words_and_old_ones():
    with pytest.raises(TypeError, match="has no option 'momentum'$"):
        fused_optim.AdamWeightDecay(parameters(), momentum=0.9)
    with pytest.warns(FutureWarning, match="`lr` is deprecated; use `learning_rate`"):
        optimizer = fused_optim.AdamWeightDecay(parameters(), learning_rate=1.0, lr=0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert fused_optim.AdamWeightDecay(parameters(), epsilon=0.0).param_groups[0]["eps"] == 1e-7


@pytest.mark.parametrize("argument", ["include_in_weight_decay", "exclude_from_weight_decay"])
def test_patterns_need_names_and_to_be_regular_expressions(argument):
    with pytest.raises(ValueError, match=r"pass model.named_parameters\(\) instead of model.param"):
        fused_optim.AdamWeightDecay(parameters(), **{argument: ["bias"]})
    named = [("bias", parameters()[0])]
    with pytest.raises(re.error):
        fused_optim.AdamWeightDecay(named, **{argument: ["("]})
    fused_optim.AdamWeightDecay(named, **{argument: ["^bias$"]})


def test_adafactor_contradicts_itself_in_transformers_words():
    theirs = pytest.importorskip("transformers.optimization").Adafactor
    for bad in ({"lr": 1e-3}, {"lr": 1e-3, "relative_step": False, "warmup_init": True}):
        with pytest.raises(ValueError) as expected:
            theirs(parameters(), **bad)
        with pytest.raises(ValueError, match=re.escape(str(expected.value))):
            fused_optim.Adafactor(parameters(), **bad)


@every_optimizer
@pytest.mark.parametrize(
    "bad,message",
    [
        ({"max_grad_norm": -1.0}, r"Invalid max_grad_norm: -1.0"),
        ({"max_grad_norm": NAN}, r"Invalid max_grad_norm: nan"),
        ({"max_grad_norm": "1"}, r"Invalid max_grad_norm: '1'"),
        ({"seed": -1}, r"Invalid seed: -1 - should be an integer in \[0, 2\*\*64\)"),
        ({"seed": 1 << 64}, r"Invalid seed: 18446744073709551616"),
        ({"seed": 1.0}, r"Invalid seed: 1.0"),
        ({"seed": None}, r"Invalid seed: None"),
        (
            {"backend": "rocm"},
            r"backend='rocm' is unknown; use 'auto' or one of cuda, triton, cpu, eager",
        ),
        ({"backend": None}, r"backend=None is unknown"),
    ],
    ids=str,
)
def test_bad_options_of_the_whole_optimizer_are_refused(row, bad, message):
    if "max_grad_norm" in bad and row.named:
        bad = {**bad, "global_clipnorm": None}
        bad = bad if row.name == "AdamWeightDecay" else {**bad, "adam_clipnorm": None}
        bad.pop("global_clipnorm" if row.name == "create_optimizer" else "adam_clipnorm", None)
    with pytest.raises(ValueError, match=message):
        row.build(parameters(), **bad)


@pytest.mark.parametrize(
    "options", [{"learning_rate": lambda step: 0.1}, {"decay": 0.5}], ids=["callable", "decay"]
)
def test_capturable_refuses_rates_that_are_evaluated_on_the_host(options):
    with pytest.raises(ValueError, match="callable learning_rate.* step a scheduler beside it"):
        fused_optim.AdamWeightDecay(parameters(), capturable=True, **options)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_named_backend_that_can_not_be_had_raises_with_the_reason(backend):
    from fused_optim.backends import dispatch

    reason = dispatch.why_not(backend, "adamw_")
    if reason is None:
        pytest.skip(f"{backend} can be had here")
    assert reason
    with pytest.raises(RuntimeError, match=re.escape(reason)) as caught:
        fused_optim.AdamW(parameters(), backend=backend)
    assert repr(backend) in str(caught.value) and "backend='auto'" in str(caught.value)
    assert "\n" not in str(caught.value)
    fused_optim.AdamW(parameters(), backend="auto")


def test_torch_compat_refuses_what_a_fused_step_can_not_do():
    with pytest.raises(RuntimeError, match="`differentiable`"):
        torch_compat.AdamW(parameters(), differentiable=True)
    with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
        torch_compat.Adam(parameters(), fused=True, foreach=True)
    torch_compat.Adam(parameters(), fused=False, foreach=True)


def test_values_that_transformers_and_torch_take_are_taken():
    fused_optim.AdamW(parameters(), lr=0.0, betas=[0.0, 0.0], eps=0, weight_decay=-1.0)
    fused_optim.AdamW(parameters(), lr=torch.tensor([1e-3]))
    fused_optim.Adafactor(parameters(), clip_threshold=INF, eps=[0, 0], decay_rate=0, beta1=0.0)
    torch_compat.Adafactor(parameters(), lr=torch.tensor(1e-2), eps=(0.0, 0.0))
    betas = (torch.tensor(0.9), torch.tensor(0.99))
    train(torch_compat.AdamW(parameters(), betas=betas), [1])
    optimizer = row("AdamW").build(parameters())
    before = snapshot(optimizer)
    optimizer.step()
    assert_identical(snapshot(optimizer), before)


@pytest.mark.parametrize(
    "make,options,message",
    [
        (fused_optim.AdamW, {"amsgrad": True}, "AdamW has no option 'amsgrad'; torch_compat.AdamW"),
        (fused_optim.AdamW, {"fused": True}, "AdamW has no option 'fused'; torch_compat.AdamW"),
        (fused_optim.Adafactor, {"d": 1.0}, "no option 'd'; torch_compat.Adafactor has it"),
        (torch_compat.AdamW, {"correct_bias": True}, "torch_compat.AdamW has no .*; AdamW has it"),
        (fused_optim.AdamWeightDecay, {"betas": (0.9, 0.9)}, "no option 'betas'; AdamW has it"),
    ],
)
def test_the_class_that_has_an_option_is_named(make, options, message):
    with pytest.raises(TypeError, match=message):
        make(parameters(), **options)
